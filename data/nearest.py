"""Exact search for the nearest texts by a teacher's vectors, in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.store import Corpus

CANDIDATES = 8192  # of a block


class Texts(NamedTuple):
    """n texts of one language that the teacher has read."""

    corpora: np.ndarray  # (n,) numbers of the corpora
    segments: np.ndarray  # (n,)
    groups: np.ndarray  # (n,) uint64


def texts_of(corpora: Sequence[Corpus], vectors: Sequence[np.ndarray], language: str) -> Texts:
    """All texts of a language that have a vector."""
    parts = []
    for number, (corpus, of_corpus) in enumerate(zip(corpora, vectors, strict=True)):
        mine = np.flatnonzero(corpus.segment_language == corpus.languages.index(language))
        mine = mine[of_corpus[mine].any(1)]
        parts.append((np.full(len(mine), number), mine, corpus.segment_groups[mine]))
    return Texts(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def nearest(
    anchors: np.ndarray, groups: np.ndarray, pool: Texts, vectors: Sequence[np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places in the pool and scores (n, count) of the nearest that are of another group, best first.

    ``anchors`` (n, E) have ``groups`` (n,); ``vectors`` are those of each corpus. The score is -inf where the pool
    holds no more.
    """
    places = np.zeros((len(anchors), count), dtype=np.int64)
    scores = np.full((len(anchors), count), -np.inf, dtype=np.float32)
    for start in range(0, len(pool.segments), CANDIDATES):
        block = slice(start, start + CANDIDATES)
        found = anchors @ rows_of(vectors, pool.corpora[block], pool.segments[block]).T
        found[groups[:, None] == pool.groups[None, block]] = -np.inf
        numbers = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
        if found.shape[1] > count:
            best = np.sort(np.argpartition(-found, count - 1, axis=1)[:, :count], axis=1)
            found, numbers = (np.take_along_axis(values, best, 1) for values in (found, numbers))
        found, numbers = np.concatenate([scores, found], 1), np.concatenate([places, numbers], 1)
        order = np.argsort(-found, axis=1, kind="stable")[:, :count]
        scores, places = (np.take_along_axis(values, order, 1) for values in (found, numbers))
    return places, scores


def rows_of(vectors: Sequence[np.ndarray], corpora: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """(n, E) float32: the vectors of texts of several corpora."""
    rows = np.empty((len(segments), vectors[0].shape[1]), dtype=np.float32)
    for number in np.unique(corpora):
        rows[corpora == number] = vectors[number][segments[corpora == number]]
    return rows
