"""Which of any number of digests were there before, in bounded memory: they are dealt out to files and sorted there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

PARTS = 256  # at a thousand million digests a part takes 63 MB
_PAIR = np.dtype([("digest", np.uint64), ("place", np.uint64)])


class Repeats:
    """Collects (digest, place), places ascending; then says which places hold a digest that an earlier one holds."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._files: dict[int, BinaryIO] = {}

    def add(self, digests: np.ndarray, places: np.ndarray) -> None:
        """n more digests, uint64, and where they were seen."""
        pairs = np.empty(len(digests), _PAIR)
        pairs["digest"], pairs["place"] = digests, places
        parts = (digests >> np.uint64(56)).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        pairs, parts = pairs[order], parts[order]
        for part, rows in zip(*_runs(parts, pairs), strict=True):
            if part not in self._files:
                self._files[part] = (self._folder / str(part)).open("wb")
            self._files[part].write(rows.tobytes())

    def places(self) -> Iterator[np.ndarray]:
        """The places of repeated digests, part by part; to be called once."""
        for part, file in self._files.items():
            file.close()
            path = self._folder / str(part)
            pairs = np.fromfile(path, _PAIR)
            path.unlink()
            pairs = pairs[np.argsort(pairs["digest"], kind="stable")]
            yield pairs["place"][1:][pairs["digest"][1:] == pairs["digest"][:-1]]


def _runs(keys: np.ndarray, rows: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Sorted keys -> (each key once, its rows)."""
    if not len(keys):
        return [], []
    cuts = np.flatnonzero(np.diff(keys)) + 1
    return keys[np.concatenate(([0], cuts))].tolist(), np.split(rows, cuts)
