"""Rows -> records, or the reason why a row or one of its texts is none."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.config import CorpusConfig
from data.records import ScoredTriplet, Sentence, TranslationPair
from data.sources.rejects import Item, Reject, Where

LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LONGEST_CODE = 40
# Fields and their values, (language, text) of translations, or the reason why there is no row.
Row = dict[str, Any] | list[tuple[str, Any]] | str


@dataclass(frozen=True, slots=True)
class Bad:
    """Stands where a text should stand, with the reason why there is none."""

    reason: str


@dataclass(frozen=True, slots=True)
class Judge:
    """Makes a record of a row, or says why not."""

    config: CorpusConfig
    maximum_characters: int

    def row(self, where: Where, row: Row) -> Iterator[Item]:
        """The record of a row, or why there is none; with it the single texts that are left out."""
        if isinstance(row, str):
            yield Reject(where, row)
        elif self.config.kind == "parallel":
            yield from self.translations(
                [(language, where, text) for language, text in self._texts_of(row)], where
            )
        elif isinstance(row, dict):
            made = self._sentence(row) if self.config.kind == "monolingual" else self._triplet(row)
            yield Reject(where, *made) if isinstance(made, tuple) else (where, made)

    def translations(self, texts: Sequence[tuple[str, Where, Any]], where: Where) -> Iterator[Item]:
        """The record of (language, place, text or anything else). Bad texts are left out as long as two remain."""
        good: list[tuple[str, str]] = []
        bad: list[Reject] = []
        for language, place, text in texts:
            problem = self.problem(text) if LANGUAGE.fullmatch(language) else "bad_language"
            if problem:
                shown = language[:LONGEST_CODE] if language.isprintable() else "?"  # it is listed in a table
                bad.append(Reject(place, problem, shown, whole_record=False))
            else:
                good.append((language, text.strip()))
        if len(good) >= 2:
            yield from bad
            yield where, TranslationPair(tuple(good))
        elif bad:
            yield Reject(bad[0].where, bad[0].reason, bad[0].language)
        else:
            yield Reject(where, "fewer_than_two_languages")

    def problem(self, text: Any) -> str:
        """The reason to refuse a text, or ""."""
        if isinstance(text, Bad):
            return text.reason
        if not isinstance(text, str):
            return "unknown_kind_of_value"
        if len(text) > self.maximum_characters:
            return "too_long"
        if not text.strip():
            return "empty"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair, written as \ud800 in JSON
            return "invalid_utf8"
        return ""

    def _texts_of(self, row: dict[str, Any] | list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        config = self.config
        if isinstance(row, list):
            return row
        if config.fields is not None:
            return [
                (language, row.get(field, Bad("missing_field"))) for language, field in config.fields.items()
            ]
        if config.columns is not None:
            return list(row.items())
        texts = row.get(config.translations or "", Bad("missing_field"))
        if not isinstance(texts, dict):
            return [("und", texts if isinstance(texts, Bad) else Bad("unknown_kind_of_value"))]
        wanted = texts if config.languages is None else config.languages
        return [
            (language, text) for language, text in texts.items() if text is not None and language in wanted
        ]

    def _sentence(self, row: dict[str, Any]) -> Sentence | tuple[str, str]:
        language = self._language(row)
        if isinstance(language, Bad):
            return language.reason, ""
        text = row.get("text" if self.config.columns else self.config.text or "", Bad("missing_field"))
        problem = self.problem(text)
        return (problem, language) if problem else Sentence(language, text.strip())

    def _triplet(self, row: dict[str, Any]) -> ScoredTriplet | tuple[str, str]:
        language = self._language(row)
        if isinstance(language, Bad):
            return language.reason, ""
        candidates = self._language(row, of_candidates=True) if self.config.candidates_language else None
        if isinstance(candidates, Bad):
            return candidates.reason, language
        names = (self.config.anchor, self.config.positive, self.config.negatives, self.config.scores)
        anchor, positive, negatives, scores = (row.get(name or "", Bad("missing_field")) for name in names)
        negatives = [negatives] if isinstance(negatives, str) else negatives
        if self.config.scores is None and isinstance(negatives, list):
            scores = [math.nan] * (1 + len(negatives))
        for value in (negatives, scores):
            if not isinstance(value, list):
                return (value.reason if isinstance(value, Bad) else "unknown_kind_of_value"), language
        problem = next(filter(None, map(self.problem, (anchor, positive, *negatives))), "")
        if problem:
            return problem, language
        if any(isinstance(score, bool) or not isinstance(score, int | float) for score in scores):
            return "unknown_kind_of_value", language
        fine = self.config.scores is None or all(abs(s) < 1e30 for s in scores)
        if not negatives or len(scores) != 1 + len(negatives) or not fine:
            return "wrong_scores", language
        others = tuple(text.strip() for text in negatives)
        given = tuple(map(float, scores))
        return ScoredTriplet(language, anchor.strip(), positive.strip(), others, given, candidates)

    def _language(self, row: dict[str, Any], *, of_candidates: bool = False) -> str | Bad:
        setting = self.config.candidates_language if of_candidates else self.config.language
        if setting is not None and setting.code is not None:
            return setting.code
        language = row.get("language" if self.config.columns else (setting and setting.field) or "")
        if language is None:
            return Bad("missing_field")
        if not isinstance(language, str) or not LANGUAGE.fullmatch(language):
            return Bad("bad_language")
        wanted = self.config.languages
        return language if wanted is None or language in wanted else Bad("left_out_language")


def fields_of(config: CorpusConfig) -> dict[str, str]:
    """field of a row -> the key of the recipe that names it"""
    if config.fields is not None:
        return {field: f"fields.{language}" for language, field in config.fields.items()}
    keys = ("translations", "text", "anchor", "positive", "negatives", "scores")
    found = {getattr(config, key): key for key in keys if getattr(config, key) is not None}
    if config.language is not None and config.language.field is not None:
        found[config.language.field] = "language.field"
    if config.candidates_language is not None and config.candidates_language.field is not None:
        found[config.candidates_language.field] = "candidates_language.field"
    return found
