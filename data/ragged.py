"""Ragged arrays: rows of different lengths (n,), their elements end to end."""

from __future__ import annotations

import numpy as np


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """(n,) int64 the place of each row's first element."""
    return np.cumsum(lengths, dtype=np.int64) - lengths


def row_of_each(lengths: np.ndarray) -> np.ndarray:
    """The number of the row that each element stands in."""
    return np.repeat(np.arange(len(lengths)), lengths)


def counted(lengths: np.ndarray) -> np.ndarray:
    """The place of each element in its row: 0, 1, ... for every row."""
    return places(np.zeros(len(lengths), np.int64), lengths)


def places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where the elements of rows stand that begin at ``starts`` (n,): start, start + 1, ... for every row."""
    return np.repeat(starts - starts_of(lengths), lengths) + np.arange(int(lengths.sum()))


def sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(n,) int64 the sum of each row of integers."""
    ends = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    last = np.cumsum(lengths)
    return ends[last] - ends[last - lengths]
