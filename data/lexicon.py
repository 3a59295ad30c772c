"""Word and phrase translations: loading dictionaries with English on one side, finding a text's words in them.

python -m data.lexicon --recipe RECIPE --out FILE        induces one from the recipe's own translations
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import regex

from data.lines import read_lines
from data.recipe import UserError

PIVOT = "en"
PHRASE = "phrase"  # fourth column of an entry that is a phrase of running text and in no dictionary
LONGEST_PHRASE = 4  # words of a phrase (ALM, Yang et al., 2020: fewer than five)
WITHOUT_SPACES = frozenset({"zh", "ja", "th", "km", "lo", "my"})

_LONGEST_ENTRY = (
    5  # words of a dictionary's entry that are looked for; characters are counted by _LONGEST_RUN
)
_LONGEST_RUN = 16

# Placeholders, markup and addresses are read as one unit, so that the words in them are left alone.
# `regex` counts combining marks as part of a word, which Devanagari needs and `re` does not do.
_WORD = regex.compile(r"\w+(?:[-'’]\w+)*", regex.V1)
# Of the characters that _NOT_PLAIN leaves out, `re` says the same as `regex`, and sooner.
_PLAIN_WORD = re.compile(_WORD.pattern)
_NOT_PLAIN = re.compile(
    r"[^\x00-\x7F\xA0\xAB\xBB\xC0-\u02FF\u0386-\u03CE\u0400-\u0481\u048A-\u0523\u05D0-\u05EA"
    r"\u060C\u061B\u061F\u0621-\u064A\u0660-\u0669\u06CC\u1E00-\u1EFF\u2010-\u203A\u3001-\u3003"
    r"\u3008-\u3011\u3041-\u3096\u30A1-\u30FE\u4E00-\u9FA5\uAC00-\uD7A3\uFF01-\uFF0F\uFF1A-\uFF20]"
)
_UNIT = regex.compile(
    rf"(?P<fixed>%\([^)]*\)\w|%\w|\{{[^}}]*\}}|<[^>]+>|https?://\S+)|(?P<word>{_WORD.pattern})", regex.V1
)
_MAY_BE_FIXED = re.compile(r"[%{<]|://")
# Inside a run without spaces: a word of another script or a number is whole, the rest goes by grapheme clusters,
# so that no vowel sign or tone mark (Thai, Burmese) is torn from its letter. Thai and Lao write some vowels as letters
# before or after their consonant: without these joined to it, นก (bird) would be found in ในการ (in the).
_CLUSTER = regex.compile(
    r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{M}]+|\p{Nd}+"
    r"|[\u0E40-\u0E44\u0EC0-\u0EC4]?\X[\u0E30\u0E32\u0E33\u0E45\u0EB0\u0EB2\u0EB3]*",
    regex.V1,
)

Translation = tuple[str, str]  # language, text


class Translations(tuple[Translation, ...]):
    """Translations of a word, as they were found."""

    @cached_property
    def of_languages(self) -> list[tuple[str, list[str]]]:
        """The same by language."""
        by_language: dict[str, list[str]] = {}
        for language, text in self:
            by_language.setdefault(language, []).append(text)
        return list(by_language.items())


NONE = Translations()
_NOTHING: Mapping[str, bool] = {}


class Match(NamedTuple):
    """A place in a text that has translations."""

    start: int
    end: int
    words: int  # units of the text that it covers
    translations: Translations


class Words(NamedTuple):
    """What a text is made of: its words (its characters, where words are not spaced) and what is known of them."""

    units: int
    matches: list[Match]
    unmatched: int  # words in no match; numbers are in every language, and count as none


class Entry(NamedTuple):
    """A line of a word list."""

    language: str
    english: str
    translation: str
    kind: str = ""  # PHRASE, or anything


class _Table:
    """Phrase in a language -> its translations in all the others, directly or through English."""

    def __init__(self) -> None:
        self._from_pivot: dict[str, dict[Translation, str]] = {}  # with what a translation looks like
        self._to_pivot: dict[tuple[str, str], dict[str, None]] = {}
        self._beginnings: dict[str, dict[str, bool]] = {}  # and whether an entry goes on there
        self._looked_up = lru_cache(maxsize=1 << 18)(self._look_up)  # texts repeat their words

    def add(self, entry: Entry) -> None:
        language, english, translation, _ = entry
        normal, other = _normal(english), _normal(translation)
        self._from_pivot.setdefault(normal, {})[(language, translation)] = other
        self._to_pivot.setdefault((language, other), {})[english] = None
        for of, phrase in ((PIVOT, normal), (language, other)):
            beginnings = self._beginnings.setdefault(of, {})
            if written_without_spaces(of):
                beginnings.update(dict.fromkeys(accumulate(phrase[:-1]), True))
            elif " " in phrase:
                before = phrase.split(" ")[:-1]
                beginnings.update(dict.fromkeys(accumulate(before, "{} {}".format), True))
            beginnings.setdefault(phrase, False)

    def beginnings(self, language: str) -> Mapping[str, bool]:
        """What entries begin with, and themselves, and whether an entry goes on there.

        Beginnings are some first words, or characters where words are not spaced.
        """
        return self._beginnings.get(language, _NOTHING)

    def translations(self, language: str, normal: str) -> Translations:
        """In languages other than ``language``, without those that look the same."""
        known = normal in self._from_pivot if language == PIVOT else (language, normal) in self._to_pivot
        return self._looked_up(language, normal) if known else NONE

    def _look_up(self, language: str, normal: str) -> Translations:
        if language == PIVOT:
            found = self._from_pivot[normal]
        else:
            found = {}
            for english in self._to_pivot[(language, normal)]:
                found[(PIVOT, english)] = looks = _normal(english)
                found.update(self._from_pivot.get(looks, {}))
        own = primary(language)
        return Translations(
            item for item, looks in found.items() if primary(item[0]) != own and looks != normal
        )


class Lexicon:
    """Every dictionary at once, and beside them the phrases of running text that were induced.

    Dictionaries pair a language with English. A word of another language is translated into English directly,
    and into a third language through English. A phrase is an entry of two to four words in English: such an entry
    of a dictionary is a word and a phrase, one that is marked as a phrase is no word.
    """

    def __init__(self, entries: Sequence[Sequence[str]]) -> None:
        """Take ``(language, English, translation)``, or with a fourth column that may say ``phrase``."""
        self._words, self._phrases = _Table(), _Table()
        self.has_phrases = False
        for fields in entries:
            entry = fields if isinstance(fields, Entry) else Entry(*fields)
            if entry.kind != PHRASE:
                self._words.add(entry)
            if entry.kind == PHRASE or 2 <= len(entry.english.split()) <= LONGEST_PHRASE:
                self._phrases.add(entry)
                self.has_phrases = True
        self.languages = frozenset({fields[0] for fields in entries} | {PIVOT})
        self._names: dict[str, str | None] = {}

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Lexicon:
        """Read tab-separated files of language, English, translation, kind (further columns are ignored)."""
        return cls([entry for path in paths for entry in read_entries(path)])

    def name_of(self, language: str) -> str | None:
        """What the lexicon calls ``language``: the tag, or its nearest parent (zh-Hans-CN, zh-Hans, zh), or None.

        Source: RFC 4647, section 3.4, "lookup".
        """
        known = {_tag(name): name for name in self.languages}
        tag = _tag(language)
        while tag and tag not in known:
            tag = tag.rpartition("-")[0]
        return known.get(tag)

    def translations(self, language: str, phrase: str) -> Translations:
        """All translations of a word into other languages, without those that look the same."""
        name = self._name(language)
        return self._words.translations(name, _normal(phrase)) if name else NONE

    def words(self, language: str, text: str) -> Words:
        """The words of ``text`` and the longest entries of it that have translations, left to right."""
        return self._found(self._words, language, text, _LONGEST_ENTRY)

    def phrases(self, language: str, text: str) -> Words:
        """The same for phrases."""
        return self._found(self._phrases, language, text, LONGEST_PHRASE)

    def _name(self, language: str) -> str | None:
        if language not in self._names:
            self._names[language] = self.name_of(language)
        return self._names[language]

    def _found(self, table: _Table, language: str, text: str, longest: int) -> Words:
        spaced = not written_without_spaces(language)
        units = units_of(language, text)
        name = self._name(language)
        beginnings = table.beginnings(name) if name is not None else _NOTHING
        longest = longest if spaced else _LONGEST_RUN
        matches: list[Match] = []
        i = unmatched = 0
        while i < len(units):
            start, stop = units[i]
            unit = text[start:stop]
            match = None
            if name is not None and unit.casefold() in beginnings:
                match = _longest(table, name, text, units, i, longest, spaced)
            if match is not None:
                matches.append(match)
            elif unit.isalpha() or any(map(str.isalpha, unit)):
                unmatched += 1
            i += match.words if match is not None else 1
        return Words(len(units), matches, unmatched)


def _longest(
    table: _Table,
    language: str,
    text: str,
    units: list[tuple[int, int]],
    first: int,
    limit: int,
    spaced: bool,
) -> Match | None:
    beginnings = table.beginnings(language)
    start, stop = units[first]
    normal, last = text[start:stop].casefold(), first
    limit = min(len(units), first + limit)
    found: list[tuple[int, str]] = []  # the ends of what an entry could be
    while (goes_on := beginnings.get(normal)) is not None:
        found.append((last, normal))
        if not goes_on or last + 1 == limit or not _adjacent(text, stop, units[last + 1][0], spaced):
            break
        last += 1
        stop = units[last][1]
        normal = text[start:stop].casefold()
    for end, normal in reversed(found):
        stop = units[end][1]
        if not spaced and sum(map(str.isalpha, text[start:stop])) < 2:
            break  # one letter of running text says too little to be translated by itself
        translations = table.translations(language, normal)
        if translations:
            return Match(start, stop, end - first + 1, translations)
    return None


@lru_cache(maxsize=1 << 12)
def primary(language: str) -> str:
    """The language of a tag without script and region: zh of zh-Hant."""
    return _tag(language).partition("-")[0]


@lru_cache(maxsize=1 << 12)
def written_without_spaces(language: str) -> bool:
    """Whether words of ``language`` are not set off by spaces; its region and script (zh-Hant) do not matter."""
    return primary(language) in WITHOUT_SPACES


def units_of(language: str, text: str) -> list[tuple[int, int]]:
    """Where the words of ``text`` stand; its characters (grapheme clusters), where words are not spaced."""
    spaced = not written_without_spaces(language)
    if spaced or text.isascii():
        return runs_of(text)
    units: list[tuple[int, int]] = []
    for start, end in runs_of(text):
        if text[start:end].isascii():
            units.append((start, end))
        else:
            units += [cluster.span() for cluster in _CLUSTER.finditer(text, start, end)]
    return units


def runs_of(text: str) -> list[tuple[int, int]]:
    """Where the runs of letters and digits in ``text`` stand, placeholders left out."""
    if _MAY_BE_FIXED.search(text):
        return [unit.span() for unit in _UNIT.finditer(text) if unit.lastgroup != "fixed"]
    word = _WORD if _NOT_PLAIN.search(text) else _PLAIN_WORD
    return [unit.span() for unit in word.finditer(text)]


def _adjacent(text: str, end: int, start: int, spaced: bool) -> bool:
    return text[end:start] == " " if spaced else end == start


def _tag(language: str) -> str:
    return language.replace("_", "-").lower()


def _normal(phrase: str) -> str:
    return " ".join(phrase.casefold().split())


def read_entries(path: Path) -> Iterator[Entry]:
    """Every line of a word list; UserError names file, line and remedy."""
    if not path.is_file():
        raise UserError(f"lexicon {path}: there is no such file. Check the path under 'lexicons'.")
    for number, (_, line) in enumerate(read_lines(str(path)), start=1):
        if line is None:
            raise UserError(f"lexicon {path}, line {number}: too long to be an entry of a word list.")
        if not line:
            continue
        try:
            columns = line.decode("utf-8").split("\t", 4)
        except UnicodeDecodeError:
            raise UserError(f"lexicon {path}, line {number}: not UTF-8. Convert the file to UTF-8.") from None
        found = [column.strip() for column in columns[:4]]
        if len(found) < 3 or not (found[0] and found[1] and found[2]):
            raise UserError(
                f"lexicon {path}, line {number}: expected language, English and translation separated by tabs,"
                f" found {len(columns)} column(s)."
            )
        yield Entry(*found)


if __name__ == "__main__":
    from data.induce import main

    sys.exit(main())
