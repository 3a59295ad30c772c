"""How far shared tokens alone solve a comparison: the shortcut that mixed text leaves to its original.

A mixed text keeps some words of its original, and whoever counts common words may find the pair without
understanding either. Two figures say how open that way is: the share of tokens that the sides have in common, and
the accuracy of the contrastive task for a bag of words that was never trained (cosine of token counts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

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
    first, second = _counts([one, other])
    sizes = np.minimum(first.sum(1), second.sum(1))
    common = first.minimum(second).sum(1) / np.maximum(sizes, 1)
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


def _counts(sides: Sequence[Sequence[np.ndarray]]) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Token counts (n, V') of both sides over the tokens that occur."""
    from scipy import sparse  # here: a process that makes no batch starts without it

    texts = [text for side in sides for text in side]
    tokens = np.concatenate(texts)
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    known, columns = np.unique(tokens, return_inverse=True)
    counts = sparse.csr_array((np.ones(len(tokens)), (rows, columns)), shape=(len(texts), len(known)))
    counts.sum_duplicates()
    return counts[: len(sides[0])], counts[len(sides[0]) :]


def _unit(counts: sparse.csr_array) -> sparse.csr_array:
    from scipy import sparse

    lengths = np.sqrt(counts.multiply(counts).sum(1))
    return sparse.diags_array(1 / np.maximum(lengths, 1e-9)) @ counts
