"""Rows of fixed length that records are put into: many at once end to end, then one by one where each leaves least."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

import numpy as np


class Rows:
    """Rows with the tokens that are still free in each."""

    def __init__(self, count: int, tokens: int) -> None:
        self._count, self._tokens = count, tokens
        # In order: (free tokens, row) as one number, free * count + row, which is sooner compared than two.
        self._free = [tokens * count + row for row in range(count)]

    @property
    def full(self) -> bool:
        """Whether no token is free."""
        return self._free[-1] < self._count

    def fill(self, rooms: np.ndarray) -> np.ndarray:
        """The rows of as many records of ``rooms`` (n,) as there is room for in this order; all rows must be empty.

        A row ends where the next record does not fit any more.
        """
        ends = np.concatenate([[0], np.cumsum(rooms)])
        count = self._count
        firsts: list[int] = [0]  # the first record of each row, and the end
        looked_up = ends.data  # a memoryview, whose numbers come as Python's
        while firsts[-1] < len(rooms) and len(firsts) <= count:
            end = looked_up[firsts[-1]] + self._tokens
            firsts.append(bisect_right(looked_up, end, firsts[-1]) - 1)
        free = np.full(count, self._tokens)
        free[: len(firsts) - 1] -= np.diff(ends[firsts])
        self._free = np.sort(free * count + np.arange(count)).tolist()
        return np.repeat(np.arange(len(firsts) - 1), np.diff(firsts))

    def take(self, room: int) -> int | None:
        """The row that has the least left with ``room`` tokens more, or None if none has them."""
        i = bisect_left(self._free, room * self._count)
        if i == self._count:
            return None
        free = self._free.pop(i)
        insort(self._free, free - room * self._count)
        return free % self._count
