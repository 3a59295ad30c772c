"""The passes over a stream's records, where some corpora may be read only so many times.

Epoch e goes over the records of all corpora that may be read more than e times; a stream whose corpora all have a cap
comes to an end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Epochs:
    """Which records (numbers in the stream) stand in which epoch."""

    def __init__(self, parts: Sequence[tuple[int, int | None]]) -> None:
        """``parts`` are (records, how often they may be read, None without end) of each corpus in turn."""
        self._parts = parts
        last = [cap for _, cap in parts if cap is not None]
        self._ends = sorted(set(last))  # epochs before which a corpus leaves
        endless = len(last) < len(parts)
        self.records_in_all: int | None = None if endless else sum(n * (cap or 0) for n, cap in parts)

    def size(self, epoch: int) -> int:
        """The number of records in an epoch."""
        return sum(records for records, cap in self._parts if cap is None or cap > epoch)

    def place(self, cursor: int) -> tuple[int, int]:
        """(epoch, position in it) of the record after ``cursor`` others; the stream must have one."""
        first = 0
        for end in self._ends:
            size = self.size(first)
            if cursor < (end - first) * size:
                break
            cursor -= (end - first) * size
            first = end
        epoch, position = divmod(cursor, self.size(first))
        return first + epoch, position

    def records(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The records (n,) at ``positions`` (n,) of an epoch, counted over the corpora that stand in it."""
        if all(cap is None or cap > epoch for _, cap in self._parts):  # no corpus has left yet
            return positions
        kept: list[int] = []
        shifts: list[int] = []  # records of the corpora that left, before each that stays
        first = 0
        for records, cap in self._parts:
            if cap is None or cap > epoch:
                shifts.append(first - sum(kept))
                kept.append(records)
            first += records
        corpus = np.searchsorted(np.cumsum(kept), positions, side="right")
        return positions + np.array(shifts, np.int64)[corpus]
