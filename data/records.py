"""What a corpus yields: sentences, translations and scored triplets, as plain text with languages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sentence:
    """One text in one language."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class TranslationPair:
    """One meaning in two or more languages: a plain pair has two texts, a multi-way row more.

    Training draws pairs of languages from the row; every language stands in it at most once.
    """

    texts: tuple[tuple[str, str], ...]  # (language, text), in the order of the row


@dataclass(frozen=True, slots=True)
class ScoredTriplet:
    """An anchor with a positive and one or more negatives, each scored against the anchor by a teacher."""

    language: str
    anchor: str
    positive: str
    negatives: tuple[str, ...]
    scores: tuple[float, ...]  # of the positive first, then of each negative; NaN where there are none yet
    candidates_language: str | None = None  # of positive and negatives, where it is not the anchor's


Record = Sentence | TranslationPair | ScoredTriplet


def segments(record: Record) -> tuple[tuple[str, str], ...]:
    """The record's texts as (language, text), in the order in which the token store lays them down."""
    if isinstance(record, Sentence):
        return ((record.language, record.text),)
    if isinstance(record, TranslationPair):
        return record.texts
    language = record.candidates_language or record.language
    return ((record.language, record.anchor), *((language, t) for t in (record.positive, *record.negatives)))
