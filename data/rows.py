"""Rows of fixed length that records are put into: many at once end to end, then one by one where each leaves least."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


class Rows:
    """Rows with the tokens that are still free in each."""

    def __init__(self, count: int, tokens: int) -> None:
        self._tokens = tokens
        self._free = [(tokens, row) for row in range(count)]

    @property
    def largest(self) -> int:
        """The most tokens that are free in a row."""
        return self._free[-1][0]

    def fill(self, rooms: np.ndarray) -> np.ndarray:
        """The rows of as many records of ``rooms`` (n,) as there is room for in this order; all rows must be empty.

        A row ends where the next record does not fit any more.
        """
        ends = np.concatenate([[0], np.cumsum(rooms)])
        count = len(self._free)
        firsts: list[int] = [0]  # the first record of each row, and the end
        while firsts[-1] < len(rooms) and len(firsts) <= count:
            end = ends[firsts[-1]] + self._tokens
            firsts.append(int(ends.searchsorted(end, side="right")) - 1)
        used = np.diff(ends[firsts]).tolist()
        self._free = sorted((self._tokens - tokens, row) for row, tokens in enumerate(used))
        self._free += [(self._tokens, row) for row in range(len(used), count)]
        return np.repeat(np.arange(len(used)), np.diff(firsts))

    def take(self, room: int) -> int | None:
        """The row that has the least left with ``room`` tokens more, or None if none has them."""
        i = bisect_left(self._free, (room, -1))
        if i == len(self._free):
            return None
        free, row = self._free.pop(i)
        insort(self._free, (free - room, row))
        return row
