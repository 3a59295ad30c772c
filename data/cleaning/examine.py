"""What is computed of a chunk of records by itself, in a worker process: numbers, signatures, languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.cleaning.config import CleaningConfig, LanguageRule
from data.cleaning.language import found_language
from data.cleaning.signatures import bands_of, shingles
from data.cleaning.texts import folded, number_of_record, number_of_text

Texts = tuple[tuple[str, str], ...]  # (language, text) of one record


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """R records of S texts in all."""

    sizes: np.ndarray  # (R,) int64, texts of each
    wrong_language: np.ndarray  # (S,) bool
    found: Counter[
        tuple[str, str]
    ]  # (language as given, likeliest or "" if it is that): texts that were judged
    texts: np.ndarray | None  # (S,) uint64, the number of each text
    text_bands: np.ndarray | None  # (S, BANDS) uint64
    records: np.ndarray | None  # (R,) uint64
    record_bands: np.ndarray | None  # (R, BANDS) uint64


def examine(records: Sequence[Texts], rules: CleaningConfig) -> Examined:
    """A pure function of its arguments, so that the outcome does not depend on how chunks are shared out.

    Of a held-out corpus ask for numbers and bands of texts by the rule that others are held to.
    """
    rows = [[(language, folded(text)) for language, text in record] for record in records]
    flat = [text for row in rows for _, text in row]
    found: Counter[tuple[str, str]] = Counter()
    wrong = np.zeros(len(flat), bool)
    if isinstance(rules.language, LanguageRule):
        for place, (language, text) in enumerate(text for record in records for text in record):
            other = found_language(language, text, rules.language)
            if other is not None:
                found[language, other] += 1
                wrong[place] = bool(other)
    near_text, near_record = rules.held_out == "near", rules.duplicates == "near"
    return Examined(
        sizes=np.array([len(record) for record in records], np.int64),
        wrong_language=wrong,
        found=found,
        texts=_numbers([number_of_text(text) for text in flat]) if rules.held_out else None,
        text_bands=bands_of([shingles(text) for text in flat]) if near_text else None,
        records=_numbers([number_of_record(row) for row in rows]) if rules.duplicates else None,
        record_bands=bands_of([_shingles_of(row) for row in rows]) if near_record else None,
    )


def _shingles_of(row: Sequence[tuple[str, str]]) -> list[str]:
    """Those of all texts of a record, each with its language: a row is near another if all of it is."""
    return [f"{language} {piece}" for language, text in row for piece in shingles(text)]


def _numbers(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)
