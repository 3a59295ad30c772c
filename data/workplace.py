"""The folder in which a store is built: beside its place, kept when the work is interrupted, gone when it is done.

STORE.partial/made_of.json    from what it is built, and by what
STORE.partial/work            journals and spools of what was done so far
STORE.partial/store           the store to be
STORE.partial/old             the store that was in its place, while they change places
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from data.inputs import differences
from data.journal import flush_folder, write_safely
from data.recipe import UserError
from data.store import MANIFEST


class Workplace:
    """Claimed by one process at a time; a context manager that lets go of the claim."""

    def __init__(
        self, place: Path, made_of: dict[str, Any], *, anew: bool, say: Callable[[str], None]
    ) -> None:
        """Takes up what an interrupted preparation left, or begins.

        made_of: what decides the bytes of the store. anew: throw away what is made of something else.
        UserError if it is, and not ``anew``; if another process works there; if no folder can be made.
        """
        self._place = place
        self.folder = _beside(place)
        self.work, self.store = self.folder / "work", self.folder / "store"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UserError(
                f"store: no folder can be made at {place}: {error}; name another one (--set store=FOLDER)"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise UserError(f"{self.folder}: another process is preparing this store; wait for it") from None
        try:
            self._begin(made_of, anew, say)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Workplace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    @property
    def finished(self) -> bool:
        """Whether the store is complete, and was not put into its place yet."""
        return (self.store / MANIFEST).is_file()

    def move_into_place(self) -> None:
        """The store takes its place; whatever was there goes."""
        old = self.folder / "old"
        if self._place.exists():
            shutil.rmtree(old, ignore_errors=True)
            self._place.rename(old)
        self.store.rename(self._place)
        flush_folder(self._place.parent)
        self.discard()

    def discard(self) -> None:
        """Nothing of it is needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, made_of: dict[str, Any], anew: bool, say: Callable[[str], None]) -> None:
        noted = self.folder / "made_of.json"
        if noted.is_file() and self.store.is_dir():
            different = differences(json.loads(noted.read_bytes()), made_of)
            if not different:
                say(f"{self._place}: going on with the preparation that was interrupted")
            elif anew:
                noted.unlink()
            else:
                raise UserError(
                    "\n  ".join([f"{self.folder}: an interrupted preparation of other inputs", *different])
                    + "\nGo on with those, or throw it away with: python -m data.prepare --recipe RECIPE --rebuild"
                )
        if not (noted.is_file() and self.store.is_dir()):
            for folder in (self.work, self.store):
                shutil.rmtree(folder, ignore_errors=True)
            write_safely(noted, json.dumps(made_of).encode())
        for folder in (self.work, self.store):
            folder.mkdir(exist_ok=True)


def clear(place: Path) -> None:
    """Take away what is left where a preparation was killed after its store took its place."""
    folder = _beside(place)
    if folder.is_dir() and not (folder / "store").exists():
        shutil.rmtree(folder, ignore_errors=True)


def _beside(place: Path) -> Path:
    return place.with_name(place.name + ".partial")
