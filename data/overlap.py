"""How far shared tokens alone solve a comparison: the shortcut that mixed text leaves to its original.

A mixed text keeps some words of its original, and whoever counts common words may find the pair without
understanding either. Two figures say how open that way is: the share of tokens that the sides have in common, and
the accuracy of the contrastive task for a bag of words that was never trained (cosine of token counts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from data.ragged import row_of_each

if TYPE_CHECKING:
    from scipy import sparse


def token_overlap(
    one: Sequence[np.ndarray], other: Sequence[np.ndarray], groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What token counts say about n pairs: ids of the one side and of the other, without <s> and </s>.

    The pool of negatives are these pairs, those of one microbatch, without the ones of the same of ``groups`` (n,);
    the model's own pool is the whole step, so that its accuracy has more to be held against.

    Returns:
        (n,) the common tokens over those of the shorter side, a token counted as often as both have it;
        (n,) int64 the sides that have a negative, 0 or 2; (n,) how many of these have their partner strictly
        nearer than every negative.

    """
    if not one:
        return np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    width = 1 + int(np.concatenate([*one, *other]).max(initial=0))
    first, second = _counts(one, width), _counts(other, width)
    common = first.minimum(second).sum(1) / np.maximum(np.minimum(first.sum(1), second.sum(1)), 1)
    cosines = (_unit(first) @ _unit(second).T).toarray()  # (n, n)
    negative = groups[:, None] != groups[None, :]
    own = np.diagonal(cosines)
    correct = np.zeros(len(one), np.int64)
    rows = np.zeros(len(one), np.int64)
    for matrix, allowed in ((cosines, negative), (cosines.T, negative.T)):
        best = np.where(allowed, matrix, -1.0).max(1)
        rows += allowed.any(1)
        correct += (own > best) & allowed.any(1)
    return common, rows, correct


def _counts(texts: Sequence[np.ndarray], width: int) -> sparse.csr_array:
    """(n, width) how often each token occurs in each text."""
    from scipy import sparse  # here: a process that makes no batch starts without it

    rows = row_of_each(np.array([len(text) for text in texts]))
    places, counts = np.unique(rows << 32 | np.concatenate(texts), return_counts=True)
    starts = np.searchsorted(places, np.arange(len(texts) + 1) << 32)
    tokens = places & 0xFFFFFFFF
    return sparse.csr_array((counts.astype(np.float64), tokens, starts), shape=(len(texts), width))


def _unit(counts: sparse.csr_array) -> sparse.csr_array:
    """Rows of length one."""
    from scipy import sparse

    rows = row_of_each(np.diff(counts.indptr))
    squares = np.bincount(rows, weights=counts.data**2, minlength=counts.shape[0])
    scaled = counts.data / np.sqrt(squares)[rows]
    return sparse.csr_array((scaled, counts.indices, counts.indptr), shape=counts.shape)
