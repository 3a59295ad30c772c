"""Where the elements of a parameter lie: in the whole of it, on a tensor rank, in a file. Arithmetic alone.

```
whole       q0 q1 q2 k0 k1 k2                    (3 rows, blocks=2, over 2 tensor ranks: one row too few)
held by 0   q0 q1 k0 k1          held by 1   q2 -- k2 --          -- fills up, nothing reads it
stored of 0 q0 q1 k0 k1          stored of 1 q2 k2
```
Every order is that of the flat tensor. ``held`` is what the tensor rank has, with what fills it up; ``stored`` is the
same without it: a stretch of held is a stretch of stored, so a rank that holds one (data ranks share a parameter in
stretches, ZeRO) writes one. Any two ways to cut a parameter meet in the whole.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from model.parallel.split import Split


class Runs(NamedTuple):
    """Stretches that lie side by side both in one order and in the whole; ascending in both."""

    local: np.ndarray  # first element in the order of a part, int64
    whole: np.ndarray  # first element in the whole
    length: np.ndarray

    @property
    def elements(self) -> int:
        """How many there are in all."""
        return int(self.length.sum())


class Copies(NamedTuple):
    """What is to be copied from one part to another."""

    source: np.ndarray
    target: np.ndarray
    length: np.ndarray


class Cut(NamedTuple):
    """What tensor rank ``rank`` of ``ranks`` has of a parameter of ``shape``: a part, or all of it without a split."""

    shape: tuple[int, ...]
    split: Split | None = None
    rank: int = 0
    ranks: int = 1

    @property
    def elements(self) -> int:
        """Of the whole parameter."""
        return math.prod(self.shape)

    @property
    def held_shape(self) -> tuple[int, ...]:
        """Of the tensor that a tensor rank has."""
        if self.split is None:
            return self.shape
        dimension, size, blocks = self.split
        held = blocks * -(-size // blocks // self.ranks)
        return (*self.shape[:dimension], held, *self.shape[dimension + 1 :])

    def held(self) -> Runs:
        """What the tensor rank has, in its own order and in the whole."""
        if self.split is None:
            zero = np.zeros(1, np.int64)
            return Runs(zero, zero, np.array([self.elements], np.int64))
        dimension, size, blocks = self.split
        assert self.shape[dimension] == size and size % blocks == 0, self
        block = size // blocks
        width = -(-block // self.ranks)
        first = min(self.rank * width, block)
        outer, inner = math.prod(self.shape[:dimension]), math.prod(self.shape[dimension + 1 :])
        numbers = np.arange(outer * blocks, dtype=np.int64)
        length = np.full(len(numbers), (min(first + width, block) - first) * inner, np.int64)
        return _joined(Runs(numbers * width * inner, (numbers * block + first) * inner, length))


def packed(runs: Runs) -> Runs:
    """``runs`` laid end to end."""
    return _joined(Runs(np.cumsum(runs.length) - runs.length, runs.whole, runs.length))


def within(runs: Runs, start: int, stop: int) -> Runs:
    """What of ``runs`` lies within elements ``start`` to ``stop`` of their own order."""
    begin = np.maximum(runs.local, start)
    length = np.minimum(runs.local + runs.length, stop) - begin
    kept = length > 0
    return Runs(begin[kept], (runs.whole + begin - runs.local)[kept], length[kept])


def overlap(source: Runs, target: Runs) -> Copies:
    """What both hold: from where in the one order to where in the other, neighbours in both as one."""
    ends = target.whole + target.length
    first = np.searchsorted(ends, source.whole, side="right")
    last = np.searchsorted(target.whole, source.whole + source.length, side="left")
    count = np.maximum(last - first, 0)
    mine = np.repeat(np.arange(len(count)), count)
    theirs = np.arange(len(mine)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    begin = np.maximum(source.whole[mine], target.whole[theirs])
    end = np.minimum(source.whole[mine] + source.length[mine], ends[theirs])
    found = Runs(
        source.local[mine] + begin - source.whole[mine],
        target.local[theirs] + begin - target.whole[theirs],
        end - begin,
    )
    return Copies(*_joined(found))


def shares(sizes: list[int], ranks: int, rank: int) -> list[tuple[int, int]]:
    """For each of several tensors of ``sizes`` elements the stretch that is ``rank``'s: equal shares of the whole.

    Without ZeRO every data rank has everything, and each writes its share.
    """
    total = sum(sizes)
    begin, end = total * rank // ranks, total * (rank + 1) // ranks
    found, before = [], 0
    for size in sizes:
        start, stop = max(begin - before, 0), min(end - before, size)
        found.append((start, max(stop - start, 0)))
        before += size
    return found


def _joined(runs: Runs) -> Runs:
    """Without empty stretches, and with neighbours in both orders made one."""
    kept = runs.length > 0
    local, whole, length = runs.local[kept], runs.whole[kept], runs.length[kept]
    if not len(local):
        return Runs(local, whole, length)
    starts = np.ones(len(local), bool)
    starts[1:] = (local[1:] != local[:-1] + length[:-1]) | (whole[1:] != whole[:-1] + length[:-1])
    firsts = np.flatnonzero(starts)
    return Runs(local[firsts], whole[firsts], np.add.reduceat(length, firsts))
