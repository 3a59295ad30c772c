"""Keyed permutations of ranges: the order of an epoch of any length, known at any position at once.

A balanced Feistel network over the next even power of two, walked until it falls back into the range (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). Nothing is shuffled, so n positions cost O(n) time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.keys import sequence, splitmix

_ROUNDS = 4
_MOST_BITS = 16  # of half a position, where the rounds are tabulated: 512 KB, for 4 billion positions
_AT_ONCE = 1 << 13  # values: what is worked on stays in the cache


class Permutation:
    """A keyed permutation of ``range(size)``."""

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        self.half = max(1, ((size - 1).bit_length() + 1) // 2)  # bits of half a position
        self._mask = np.uint64((1 << self.half) - 1)
        self._round_keys = sequence(np.array([key], np.uint64), np.array([_ROUNDS]))
        self._tables: np.ndarray | None = None

    @property
    def tables(self) -> np.ndarray:
        """(rounds, 2**half) uint16: what each round makes of half a position, for many positions of one epoch."""
        if self._tables is None:
            halves = np.arange(1 << self.half, dtype=np.uint64)
            self._tables = self._round(self._round_keys[:, None], halves).astype(np.uint16)
        return self._tables

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Where ``positions`` (n,) are sent, (n,) int64."""
        values = positions.astype(np.uint64)
        walking = np.arange(len(values))
        half = np.uint64(self.half)
        while len(walking):
            left, right = values[walking] >> half, values[walking] & self._mask
            for round_key in self._round_keys:
                left, right = right, left ^ self._round(round_key, right)
            values[walking] = left << half | right
            walking = walking[values[walking] >= np.uint64(self.size)]
        return values.view(np.int64)

    def _round(self, keys: np.ndarray, halves: np.ndarray) -> np.ndarray:
        return splitmix(keys ^ halves) & self._mask


def permuted_parts(parts: Sequence[tuple[int, int]], permutations: Sequence[Permutation]) -> list[np.ndarray]:
    """Where stretches of positions, (first, count) each, are sent by a permutation each: all at once."""
    found: list[np.ndarray] = [np.empty(0, np.int64)] * len(parts)
    small = [number for number, each in enumerate(permutations) if each.half <= _MOST_BITS]
    for number in set(range(len(parts))) - set(small):
        first, count = parts[number]
        found[number] = permutations[number](np.arange(first, first + count))
    if small:
        columns = _walked([parts[number] for number in small], [permutations[number] for number in small])
        for number, column in zip(small, columns, strict=True):
            found[number] = column
    return found


def _walked(parts: Sequence[tuple[int, int]], permutations: Sequence[Permutation]) -> list[np.ndarray]:
    counts = np.array([count for _, count in parts])
    ends = np.cumsum(counts)
    which = np.repeat(np.arange(len(parts)), counts)  # the permutation of each position
    values = np.arange(len(which)) + np.repeat(
        np.array([first for first, _ in parts]) - (ends - counts), counts
    )
    sizes = np.array([each.size for each in permutations])
    halves = np.array([each.half for each in permutations])
    masks = (1 << halves) - 1
    # The tables end to end, the widest first: each begins where its number of bits is zero, so that a half with
    # the bits of its table's place beside it is where the round stands.
    widest_first = np.argsort(-halves, kind="stable")
    places = np.empty_like(halves)
    places[widest_first] = np.cumsum(masks[widest_first] + 1) - (masks[widest_first] + 1)
    rounds = np.concatenate([permutations[number].tables for number in widest_first], axis=1)
    found, walking = values, None  # the first pass is over all of them, in place
    while len(values):
        outside = np.empty(len(values), bool)
        for begin in range(0, len(values), _AT_ONCE):
            block, of = values[begin : begin + _AT_ONCE], which[begin : begin + _AT_ONCE]
            half, mask, place = halves.take(of), masks.take(of), places.take(of)
            left, right = block >> half, block & mask
            left |= place
            right |= place
            for table in rounds:
                left ^= table.take(right)
                left, right = right, left
            left &= mask
            left <<= half
            right &= mask
            np.bitwise_or(left, right, out=block)
            np.greater_equal(block, sizes.take(of), out=outside[begin : begin + _AT_ONCE])
        if walking is not None:
            found[walking] = values
        again = np.flatnonzero(outside)
        values, which, walking = values[again], which[again], again if walking is None else walking[again]
    return np.split(found, ends[:-1])
