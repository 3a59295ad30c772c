"""Requests: what people ask of a run while it goes on, by a signal or by a file STOP or SAVE in its folder."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

STOP, SAVE = "STOP", "SAVE"


class Requests:
    """Asked at every step; what this process knows is for the caller to share with the other ranks."""

    def __init__(self, folder: Path, *, first: bool) -> None:
        """``first``: whether this is the rank that looks at the files.

        Another rank could still see a file that was answered and is being removed.
        """
        self._folder = folder
        self._first = first
        self._signal: str | None = None

    def listen(self) -> None:
        """Take SIGTERM and SIGINT as requests to stop, from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name

    def seen(self) -> tuple[bool, bool]:
        """Whether to stop after this step, and whether to save it."""
        return self._signal is not None or self._is_there(STOP), self._is_there(SAVE)

    def answered(self, what: str) -> None:
        """Take a file away."""
        if self._first:
            (self._folder / what).unlink(missing_ok=True)

    @property
    def why_to_stop(self) -> str:
        """For people."""
        return self._signal or "STOP file or another rank"

    def _is_there(self, what: str) -> bool:
        return self._first and (self._folder / what).exists()
