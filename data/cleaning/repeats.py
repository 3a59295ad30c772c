"""Which of any number of digests were there before, in bounded memory: they are dealt out to files and sorted there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data.parts import MOST_BITS, ROWS_OF_A_PART, Parts, part_of

_PAIR = np.dtype([("digest", np.uint64), ("place", np.int64)])


class Repeats:
    """Collects (digest, place), places ascending; then says which places hold a digest that an earlier one holds."""

    def __init__(self, folder: Path, sizes: Mapping[str, int] | None = None) -> None:
        """``sizes``: of what was collected by an earlier process (see Spool)."""
        self._folder = folder
        self._pairs = Parts(folder, _PAIR, sizes)

    def add(self, digests: np.ndarray, places: np.ndarray) -> None:
        """n more digests, uint64, and where they were seen."""
        pairs = np.empty(len(digests), _PAIR)
        pairs["digest"], pairs["place"] = digests, places
        self._pairs.deal(part_of(digests, MOST_BITS), pairs)

    def sizes(self) -> dict[str, int]:
        """The sizes of its files, once all is on the disk."""
        return self._pairs.sizes()

    def places(self) -> Iterator[np.ndarray]:
        """The places of repeated digests, part by part."""
        for part in range(2**MOST_BITS):
            if self._pairs.size(part) <= ROWS_OF_A_PART:
                yield from _repeated(self._pairs, part)
                continue
            again = Parts(self._folder.with_name(self._folder.name + "-again"), _PAIR)
            for rows in self._pairs.rows(part):
                again.deal(part_of(rows["digest"] << np.uint64(MOST_BITS), MOST_BITS), rows)
            for smaller in range(2**MOST_BITS):
                yield from _repeated(again, smaller)
            again.remove()

    def remove(self) -> None:
        """The files are no longer needed."""
        self._pairs.remove()


def _repeated(pairs: Parts, part: int) -> Iterator[np.ndarray]:
    """The places of a part whose digests stand in it before. What is held are its digests, each once."""
    first = np.empty(0, _PAIR)
    for rows in pairs.rows(part):
        both = np.concatenate([first, rows])
        both = both[np.argsort(both["digest"], kind="stable")]
        first = both[np.concatenate([[True], both["digest"][1:] != both["digest"][:-1]])]
    for rows in pairs.rows(part):
        yield rows["place"][first["place"][np.searchsorted(first["digest"], rows["digest"])] != rows["place"]]
