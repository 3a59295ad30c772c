"""Keyed randomness: every draw is a function of what it is for, never of who makes it or when.

A key names its use, for example ``key(seed, "mmlm/de", record, epoch, "mask")``. The same key gives the same
numbers on every rank, in every worker and after every resume.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import numpy as np

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


def splitmix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): one bit changed changes half of the result."""
    with np.errstate(over="ignore"):
        return _mix_in_place(values.copy())


def _mix_in_place(values: np.ndarray) -> np.ndarray:
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
