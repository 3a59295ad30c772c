"""Word translations: loading dictionaries with English on one side, and finding a text's words in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import regex

from data.lines import read_lines
from data.recipe import UserError

PIVOT = "en"
WITHOUT_SPACES = frozenset({"zh", "ja", "th", "km", "lo", "my"})

_LONGEST_PHRASE = 5  # words; characters are counted by _LONGEST_RUN
_LONGEST_RUN = 12

# Placeholders, markup and addresses are read as one unit, so that the words in them are left alone.
# `regex` counts combining marks as part of a word, which Devanagari needs and `re` does not do.
_UNIT = regex.compile(
    r"(?P<fixed>%\([^)]*\)\w|%\w|\{[^}]*\}|<[^>]+>|https?://\S+)|(?P<word>\w+(?:[-'’]\w+)*)", regex.V1
)

Translation = tuple[str, str]  # language, text


class Match(NamedTuple):
    """A place in a text that has translations."""

    start: int
    end: int
    translations: tuple[Translation, ...]


class Words(NamedTuple):
    """What a text is made of: its words (its characters, where words are not spaced) and what is known of them."""

    units: int
    matches: list[Match]
    unmatched: int  # words in no match; numbers are in every language, and count as none


class Lexicon:
    """Every dictionary at once: phrase in a language -> its translations in all the others.

    Dictionaries pair a language with English. A word of another language is translated into English directly,
    and into a third language through English.
    """

    def __init__(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Take ``(language, English, translation)`` triples."""
        self._from_pivot: dict[str, dict[Translation, None]] = {}
        self._to_pivot: dict[tuple[str, str], dict[str, None]] = {}
        for language, english, translation in entries:
            self._from_pivot.setdefault(_normal(english), {})[(language, translation)] = None
            self._to_pivot.setdefault((language, _normal(translation)), {})[english] = None
        self.languages = frozenset({language for language, _ in self._to_pivot} | {PIVOT})
        self._looked_up = lru_cache(maxsize=1 << 18)(self._look_up)  # texts repeat their words

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Lexicon:
        """Read tab-separated files of language, English, translation (further columns are ignored)."""
        return cls([entry for path in paths for entry in read_entries(path)])

    def translations(self, language: str, phrase: str) -> tuple[Translation, ...]:
        """All translations of ``phrase`` into other languages, without those that look the same."""
        return self._looked_up(language, _normal(phrase))

    def _look_up(self, language: str, normal: str) -> tuple[Translation, ...]:
        if language == PIVOT:
            found = dict(self._from_pivot.get(normal, {}))
        else:
            found = {}
            for english in self._to_pivot.get((language, normal), ()):
                found[(PIVOT, english)] = None
                found.update(self._from_pivot.get(_normal(english), {}))
        return tuple(item for item in found if item[0] != language and _normal(item[1]) != normal)

    def words(self, language: str, text: str) -> Words:
        """The words of ``text`` and the longest phrases of it that have translations, left to right."""
        units = list(_units(language, text))
        spaced = not written_without_spaces(language)
        matches: list[Match] = []
        i = unmatched = 0
        while i < len(units):
            match, used = self._longest(language, text, units, i, spaced)
            if match is not None:
                matches.append(match)
            elif any(character.isalpha() for character in text[slice(*units[i])]):
                unmatched += 1
            i += used
        return Words(len(units), matches, unmatched)

    def _longest(
        self, language: str, text: str, units: list[tuple[int, int]], first: int, spaced: bool
    ) -> tuple[Match | None, int]:
        start = units[first][0]
        last = first
        limit = min(len(units), first + (_LONGEST_PHRASE if spaced else _LONGEST_RUN))
        while last + 1 < limit and _adjacent(text, units[last][1], units[last + 1][0], spaced):
            last += 1
        # One character of running text says too little to be translated by itself.
        for end in range(last, first - 1 if spaced else first, -1):
            found = self.translations(language, text[start : units[end][1]])
            if found:
                return Match(start, units[end][1], found), end - first + 1
        return None, 1


def written_without_spaces(language: str) -> bool:
    """Whether words of ``language`` are not set off by spaces; its region and script (zh-Hant) do not matter."""
    return language.replace("_", "-").partition("-")[0].lower() in WITHOUT_SPACES


def _units(language: str, text: str) -> Iterator[tuple[int, int]]:
    spaced = not written_without_spaces(language)
    for unit in _UNIT.finditer(text):
        if unit.lastgroup == "fixed":
            continue
        if not spaced and not unit.group().isascii():
            yield from ((i, i + 1) for i in range(unit.start(), unit.end()))
        else:
            yield unit.span()


def _adjacent(text: str, end: int, start: int, spaced: bool) -> bool:
    return text[end:start] == " " if spaced else end == start


def _normal(phrase: str) -> str:
    return " ".join(phrase.casefold().split())


def read_entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """Language, English and translation of every line of a word list; UserError names file, line and remedy."""
    if not path.is_file():
        raise UserError(f"lexicon {path}: there is no such file. Check the path under 'lexicons'.")
    for number, line in enumerate(read_lines(str(path)), start=1):
        if line is None:
            raise UserError(f"lexicon {path}, line {number}: too long to be an entry of a word list.")
        if not line:
            continue
        try:
            columns = line.decode("utf-8").split("\t")
        except UnicodeDecodeError:
            raise UserError(f"lexicon {path}, line {number}: not UTF-8. Convert the file to UTF-8.") from None
        if len(columns) < 3 or not all(column.strip() for column in columns[:3]):
            raise UserError(
                f"lexicon {path}, line {number}: expected language, English and translation separated by tabs,"
                f" found {len(columns)} column(s)."
            )
        yield columns[0].strip(), columns[1].strip(), columns[2].strip()
