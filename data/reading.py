"""From segments of a store to texts, many at once: one look into each column for all texts of a corpus."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from data.ragged import places, starts_of
from data.store import Corpus
from data.teaching import Taught
from data.texts import Texts


def read_texts(corpora: Sequence[Corpus], of: np.ndarray, segments: np.ndarray, taught: Taught) -> Texts:
    """``segments`` (n,) of the corpora with the numbers ``of`` (n,), with what the teacher said about them."""
    count = len(segments)
    languages, lengths = np.zeros(count, np.int64), np.zeros(count, np.int64)
    groups, scores = np.zeros(count, np.uint64), np.full(count, math.nan)
    teacher = np.zeros((count, taught.width), np.float32)
    found: list[tuple[np.ndarray, np.ndarray]] = []  # which texts, their ids end to end
    for number in np.unique(of):
        corpus, here = corpora[number], np.flatnonzero(of == number)
        mine = segments[here]
        ends, values = corpus.id_columns
        starts = ends[mine]
        lengths[here] = ends[mine + 1] - starts
        languages[here] = corpus.segment_language[mine]
        groups[here] = corpus.segment_groups[mine]
        found.append((here, values[places(starts, lengths[here])]))
        if corpus.kind == "scored":
            again = taught.scores.scores(corpus.name) if taught.scores else None
            scores[here] = (corpus.segment_scores if again is None else again)[mine]
        elif taught.vectors is not None:
            vectors = taught.vectors.vectors(corpus.name)
            if vectors is not None:
                teacher[here] = vectors[mine]
    ids = np.empty(int(lengths.sum()), np.int32)
    firsts = starts_of(lengths)
    for here, values in found:
        ids[places(firsts[here], lengths[here])] = values
    return Texts(languages, lengths, ids, groups, _Written(corpora, of, segments), scores, teacher)


class _Written:
    """What stood there, of all texts as soon as one is asked for: tasks look at all or at none."""

    def __init__(self, corpora: Sequence[Corpus], of: np.ndarray, segments: np.ndarray) -> None:
        self._corpora, self._of, self._segments = corpora, of, segments

    def __call__(self, number: int) -> str:
        return self._texts[number]

    @cached_property
    def _texts(self) -> list[str]:
        found = [""] * len(self._segments)
        for number in np.unique(self._of):
            here = np.flatnonzero(self._of == number)
            texts = self._corpora[number].texts(self._segments[here])
            for place, text in zip(here.tolist(), texts, strict=True):
                found[place] = text
        return found
