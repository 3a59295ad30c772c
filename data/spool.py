"""Files that only grow, in one folder, and are cut back to what is known of them when their work is taken up again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

ROWS_AT_A_TIME = 1 << 20


class Spool:
    """A folder of growing files. None is held open: a chunk is large beside the opening of its files."""

    def __init__(self, folder: Path, sizes: Mapping[str, int] | None = None) -> None:
        """``sizes``: what each file had when its state was last written down; whatever came after that goes."""
        self.folder = folder
        self._sizes = dict(sizes or {})
        self._safe = dict(self._sizes)  # what is known to be on the disk
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.name in self._sizes:
                os.truncate(file, self._sizes[file.name])
            else:
                file.unlink()

    def append(self, name: str, rows: np.ndarray | bytes) -> None:
        """Adds to the end of a file."""
        data = rows if isinstance(rows, bytes) else np.ascontiguousarray(rows).view(np.uint8).data
        if len(data) or name not in self._sizes:
            with (self.folder / name).open("ab") as file:
                file.write(data)
            self._sizes[name] = self._sizes.get(name, 0) + len(data)

    def sizes(self) -> dict[str, int]:
        """The size of each file, once all of it is on the disk."""
        for name, size in self._sizes.items():
            if size != self._safe.get(name):
                with (self.folder / name).open("rb") as file:
                    os.fsync(file.fileno())
        self._safe = dict(self._sizes)
        return dict(self._sizes)

    def size(self, name: str) -> int:
        """Bytes of a file; 0 if there is none."""
        return self._sizes.get(name, 0)

    def path(self, name: str) -> Path:
        """Where a file lies; it need not be there."""
        return self.folder / name

    def rows(self, name: str, dtype: np.dtype | type) -> Iterator[np.ndarray]:
        """The rows of a file, at most ROWS_AT_A_TIME at once; none if there is no such file."""
        if name in self._sizes:
            yield from rows_of(self.folder / name, dtype)


def rows_of(path: Path, dtype: np.dtype | type, most: int | None = None) -> Iterator[np.ndarray]:
    """The rows of a file of numbers, ``most`` at once, or ROWS_AT_A_TIME.

    They are read, not mapped: what is mapped counts as memory of the process.
    """
    with path.open("rb") as file:
        while len(rows := np.fromfile(file, dtype, most or ROWS_AT_A_TIME)):
            yield rows
