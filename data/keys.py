"""Keyed randomness: every draw is a function of what it is for, never of who makes it or when.

A key names its use, for example ``key(seed, "mmlm/de", record, epoch, "mask")``. The same key gives the same
numbers on every rank, in every worker and after every resume.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import numpy as np

_ROUNDS = 4
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


def hashed(hash_key: int, numbers: np.ndarray) -> np.ndarray:
    """A 64-bit number for each of ``numbers`` (n,), keyed: a draw for many records at once."""
    with np.errstate(over="ignore"):
        values = _mix(numbers.astype(np.uint64) * _GOLDEN ^ np.uint64(hash_key))
    assert isinstance(values, np.ndarray)
    return values


def permuted(positions: np.ndarray, size: int, permutation_key: int) -> np.ndarray:
    """Where a keyed permutation of ``range(size)`` sends ``positions`` (n,), in O(n) time and memory.

    A balanced Feistel network over the next even power of two, walked until it falls back into the range
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Nothing is shuffled, so the order of an
    epoch of any length is known at any position at once.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    values = positions.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    with np.errstate(over="ignore"):
        round_keys = [_mix(np.uint64(permutation_key) + np.uint64(i + 1) * _GOLDEN) for i in range(_ROUNDS)]
        while outside.any():
            left, right = values[outside] >> half, values[outside] & mask
            for round_key in round_keys:
                left, right = right, left ^ (_mix(right ^ round_key) & mask)
            values[outside] = (left << half) | right
            outside = values >= size
    return values.astype(np.int64)


def _mix(value: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): one bit changed changes half of the result."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
