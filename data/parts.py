"""Rows of numbers dealt out to files by their keys: what needs all rows of a key at once is done a file at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data.spool import Spool

MOST_BITS = 8
ROWS_OF_A_PART = 1 << 22
_ROWS_HELD = 1 << 19  # before they are written, so that a write is some kilobytes


class Parts:
    """Rows of one kind in up to 256 files. Equal keys lie in one file, in the order in which they came."""

    def __init__(self, folder: Path, dtype: np.dtype, sizes: Mapping[str, int] | None = None) -> None:
        """``sizes``: of parts that were begun earlier (see Spool)."""
        self._spool = Spool(folder, sizes)
        self._dtype = dtype
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows = 0

    def deal(self, parts: np.ndarray, rows: np.ndarray) -> None:
        """Adds rows (n,) of the dtype, each to its part (n,) uint8."""
        self._held.append((parts, rows))
        self._rows += len(rows)
        if self._rows >= _ROWS_HELD:
            self._write()

    def sizes(self) -> dict[str, int]:
        """The size of each file, once all of it is on the disk."""
        self._write()
        return self._spool.sizes()

    def size(self, part: int) -> int:
        """The rows of a part."""
        self._write()
        return self._spool.size(str(part)) // self._dtype.itemsize

    def rows(self, part: int) -> Iterator[np.ndarray]:
        """The rows of a part, some at a time."""
        self._write()
        return self._spool.rows(str(part), self._dtype)

    def remove(self) -> None:
        """The files are no longer needed."""
        self._held, self._rows = [], 0
        shutil.rmtree(self._spool.folder)

    def _write(self) -> None:
        if not self._held:
            return
        parts, rows = (np.concatenate(arrays) for arrays in zip(*self._held, strict=True))
        self._held, self._rows = [], 0
        rows = rows[np.argsort(parts, kind="stable")]  # of bytes: a radix sort
        ends = np.cumsum(np.bincount(parts))
        for part in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
            self._spool.append(str(part), rows[ends[part - 1] if part else 0 : ends[part]])


def bits_for(rows: int) -> int:
    """By how many bits of their keys rows are to be dealt out, so that a part holds about ROWS_OF_A_PART of them."""
    return min(max(rows // ROWS_OF_A_PART, 1).bit_length(), MOST_BITS)


def part_of(keys: np.ndarray, bits: int) -> np.ndarray:
    """(n,) uint8: the part of each key (n,) uint64, by its first bits."""
    return (keys >> np.uint64(64 - bits)).astype(np.uint8)
