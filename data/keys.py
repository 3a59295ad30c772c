"""Keyed randomness: every draw is a function of what it is for, never of who makes it or when.

A key names its use, for example ``key(seed, "mmlm/de", record, epoch, "mask")``. The same key gives the same
numbers on every rank, in every worker and after every resume.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

_ROUNDS = 4
_AT_ONCE = 1 << 13  # values: what is worked on stays in the cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(*parts: int | str) -> int:
    """A 64-bit number that depends on every part and on their order."""
    digest = blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, str):
            text = part.encode()
            digest.update(b"s" + struct.pack("<q", len(text)) + text)
        else:
            digest.update(b"i" + struct.pack("<q", int(part)))
    return int.from_bytes(digest.digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A random generator of its own for the use that ``parts`` name."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def hashed(hash_key: int | np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A 64-bit number for each of ``numbers`` (n,), under one key or one each: a draw for many records at once."""
    with np.errstate(over="ignore"):
        return _mix_in_place(numbers.astype(np.uint64) * _GOLDEN ^ np.asarray(hash_key, np.uint64))


def sequence(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """64-bit numbers end to end, ``counts`` (n,) of each of ``keys`` (n,): SplitMix64 from that key on."""
    places = np.arange(1, int(counts.sum()) + 1, dtype=np.uint64)
    places -= np.repeat((np.cumsum(counts) - counts).astype(np.uint64), counts)
    with np.errstate(over="ignore"):
        return _mix_in_place(np.repeat(keys, counts) + places * _GOLDEN)


def chances(numbers: np.ndarray) -> np.ndarray:
    """64-bit numbers as float64 in [0, 1)."""
    return (numbers >> np.uint64(11)) / 2.0**53


def permuted(positions: np.ndarray, size: int, permutation_key: int) -> np.ndarray:
    """Where a keyed permutation of ``range(size)`` sends ``positions`` (n,), in O(n) time and memory.

    A balanced Feistel network over the next even power of two, walked until it falls back into the range
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Nothing is shuffled, so the order of an
    epoch of any length is known at any position at once.
    """
    permutations = np.zeros(len(positions), np.intp)
    return _walked(positions, permutations, [size], [permutation_key])


def permuted_parts(
    parts: Sequence[tuple[int, int]], sizes: Sequence[int], permutation_keys: Sequence[int]
) -> list[np.ndarray]:
    """``permuted`` for stretches of positions, (first, count) each, under permutations of their own: all at once."""
    counts = [count for _, count in parts]
    ends = np.cumsum(counts, dtype=np.int64)
    shifts = np.array([first for first, _ in parts], np.int64) - (ends - counts)
    permutations = np.repeat(np.arange(len(parts)), counts)
    positions = np.arange(len(permutations)) + shifts[permutations]
    return np.split(_walked(positions, permutations, sizes, permutation_keys), ends[:-1])


def _walked(
    positions: np.ndarray, permutations: np.ndarray, sizes: Sequence[int], keys: Sequence[int]
) -> np.ndarray:
    """Where the permutations of ``sizes`` and ``keys`` send positions (n,); ``permutations`` (n,): which is whose."""
    halves = np.array([max(1, ((size - 1).bit_length() + 1) // 2) for size in sizes], np.uint64)
    masks = (np.uint64(1) << halves) - np.uint64(1)
    ranges = np.array(sizes, np.uint64)
    of_rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64)[:, None]
    with np.errstate(over="ignore"):
        round_keys = _mix(np.array(keys, np.uint64) + of_rounds * _GOLDEN)  # (rounds, permutations)
    values, which = positions.astype(np.uint64), permutations
    found, places = values, None  # the first pass is over all of them, in place
    while len(values):
        outside = np.empty(len(values), bool)
        for begin in range(0, len(values), _AT_ONCE):
            block, of = values[begin : begin + _AT_ONCE], which[begin : begin + _AT_ONCE]
            half, mask = halves[of], masks[of]
            left, right = block >> half, block & mask
            for keys_of_round in round_keys:
                mixed = keys_of_round[of]
                mixed ^= right
                _mix_in_place(mixed)
                mixed &= mask
                left ^= mixed
                left, right = right, left
            left <<= half
            np.bitwise_or(left, right, out=block)
            np.greater_equal(block, ranges[of], out=outside[begin : begin + _AT_ONCE])
        if places is not None:
            found[places] = values
        again = np.flatnonzero(outside)
        values, which, places = values[again], which[again], again if places is None else places[again]
    return found.view(np.int64)


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): one bit changed changes half of the result."""
    return _mix_in_place(np.array(value))


def _mix_in_place(values: np.ndarray) -> np.ndarray:
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
