"""Texts of a store as a task's function gets them: many at once, their ids end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from data.ragged import places, starts_of


class TextSegment(NamedTuple):
    """One text of a record as the store holds it."""

    language: int  # number of the language
    ids: np.ndarray  # (n,) int32, without special tokens
    text: str
    group: int  # equal for the same sentence and for translations of one sentence
    score: float = math.nan  # the teacher's, against the anchor of the triplet that the text stands in
    teacher: np.ndarray | None = None  # (Et,) the teacher's vector, where the recipe asks for one


@dataclass(frozen=True, slots=True)
class Texts:
    """n texts, t tokens in all."""

    languages: np.ndarray  # (n,) int64
    lengths: np.ndarray  # (n,) int64, ids of each
    ids: np.ndarray  # (t,) int32, without special tokens
    groups: np.ndarray  # (n,) uint64
    text: Callable[[int], str]  # what stood there, of one of them, whole even where its ids are cut
    scores: np.ndarray  # (n,) float64, NaN where there is none
    teacher: np.ndarray  # (n, Et) float32, zeros where there is none; Et is 0 where none are asked for

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.languages)

    @property
    def starts(self) -> np.ndarray:
        """(n,) where the ids of each begin."""
        return starts_of(self.lengths)

    def taken(self, order: np.ndarray) -> Texts:
        """Those of the numbers ``order`` (k,), in that order."""
        ids = self.ids[places(self.starts[order], self.lengths[order])]
        columns = (self.groups[order], lambda i: self.text(int(order[i])), self.scores[order])
        return Texts(self.languages[order], self.lengths[order], ids, *columns, self.teacher[order])

    def cut(self, lengths: np.ndarray | int) -> Texts:
        """The same with at most ``lengths`` (n,) ids each."""
        kept = np.minimum(self.lengths, lengths)
        if (kept == self.lengths).all():
            return self
        return replace(self, lengths=kept, ids=self.ids[places(self.starts, kept)])

    @classmethod
    def of(cls, segments: Sequence[TextSegment]) -> Texts:
        """Texts that are at hand one by one."""
        width = max((len(s.teacher) for s in segments if s.teacher is not None), default=0)
        teacher = np.zeros((len(segments), width), np.float32)
        for row, segment in enumerate(segments):
            if segment.teacher is not None:
                teacher[row] = segment.teacher
        return cls(
            np.array([s.language for s in segments], np.int64),
            np.array([len(s.ids) for s in segments], np.int64),
            np.concatenate([np.empty(0, np.int32), *(s.ids for s in segments)]),
            np.array([s.group for s in segments], np.uint64),
            lambda i: segments[i].text,
            np.array([s.score for s in segments], float),
            teacher,
        )
