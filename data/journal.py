"""The journal of a piece of work: how far it is, in one file that is replaced in one step.

What stands in it is on the disk: a process that is killed, at whatever moment, goes on from there when it is started
again. Files that grow meanwhile are spools, whose sizes stand in the journal.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

SECONDS_BETWEEN = 20.0  # notes of work that goes on: so much is done again at most


class Journal:
    """State of one piece of work, as plain values."""

    def __init__(self, path: Path) -> None:
        """``path``: its file; there is none before the first note."""
        self._path = path
        self._noted = time.monotonic()
        self.state: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}

    @property
    def due(self) -> bool:
        """Whether it is time for another note."""
        return time.monotonic() - self._noted >= SECONDS_BETWEEN

    def note(self, state: dict[str, Any]) -> None:
        """The state is this now, whatever happens."""
        write_safely(self._path, json.dumps(state).encode())
        self.state, self._noted = state, time.monotonic()


def write_safely(path: Path, content: bytes) -> None:
    """A file that is there with all of its content, or not at all."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """The names in a folder, to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
