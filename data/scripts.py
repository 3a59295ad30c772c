"""In which scripts each language is written: found in the ids that its training texts use.

The target-script rate of pseudo tokens needs both. A table of languages and scripts would say nothing of a code that it
does not know; the language's own corpus does, as long as foreign words in it are the exception.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import regex

from data.masking import FIRST_ORDINARY_ID

# A script is a language's own if it has three tenths of the tokens of its most frequent one: Katakana in Japanese has
# more, Latin names in Russian interface texts have less.
_OWN = 0.3
_LETTER = regex.compile(r"\p{L}")
# Scripts of Unicode that living languages are written in (UAX #24), by their property names; those of many letters
# first, for they are tried in this order.
_SCRIPTS = tuple(
    "Latin Han Hangul Cyrillic Greek Arabic Hebrew Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu Kannada"
    " Malayalam Sinhala Thai Lao Tibetan Myanmar Georgian Armenian Ethiopic Khmer Mongolian Hiragana Katakana Syriac"
    " Thaana Nko Tifinagh Cherokee Canadian_Aboriginal Javanese Balinese Ol_Chiki Meetei_Mayek Adlam Bopomofo Vai Yi"
    " Lisu Sundanese Cham Tai_Le New_Tai_Lue Osage Chakma".split()
)
_BY_NAME = [(name, regex.compile(rf"\p{{Script={name}}}")) for name in _SCRIPTS]


class Scripts(NamedTuple):
    """Scripts by number; 0 stands for no letter at all (digits, punctuation) and belongs to no language."""

    of_ids: np.ndarray  # (V,) int64
    of_languages: np.ndarray  # (L, scripts) bool: what each language is written in
    names: tuple[str, ...]  # (scripts,)


def find_scripts(pieces: Sequence[str], counts: np.ndarray) -> Scripts:
    """The scripts of the ids whose ``pieces`` (V,) are given, and of the languages that use them so often (L, V)."""
    found = [script_of(piece) if i >= FIRST_ORDINARY_ID else None for i, piece in enumerate(pieces[:-1])]
    names = ("", *sorted({name for name in found if name is not None}))
    numbers = {name: number for number, name in enumerate(names)}
    of_ids = np.array([*(numbers[name or ""] for name in found), 0], dtype=np.int64)  # <mask> is the last id
    tokens = np.stack([counts[:, of_ids == number].sum(1) for number in range(len(names))], axis=1)
    tokens[:, 0] = 0
    most = tokens.max(axis=1, keepdims=True)
    return Scripts(of_ids, (tokens >= _OWN * most) & (tokens > 0), names)


def script_of(text: str) -> str | None:
    """The script of most of the letters of ``text``; None without letters. A script that is in no list is "other"."""
    letters = _LETTER.findall(text)
    if not letters:
        return None
    found = list(map(_script_of_letter, letters))
    if found.count(found[0]) == len(found):  # nearly always, and much sooner than counting all
        return found[0]
    return Counter(found).most_common(1)[0][0]


@lru_cache(maxsize=1 << 16)
def _script_of_letter(letter: str) -> str:
    return next((name for name, letters in _BY_NAME if letters.match(letter)), "other")
