"""Finding the entries of a word list in a text: the longest that have translations, from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import cached_property
from itertools import accumulate, islice
from typing import NamedTuple, Protocol

from data.units import apart_at_spaces, runs_of, units_of, written_without_spaces

_LONGEST_RUN = 16  # characters of an entry that is looked for where words are not spaced
_MOST_PARTS = 1 << 18  # parts of texts between spaces that are kept, about 50 MB

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


_NONE = Translations()


class Entries(Protocol):
    """What is searched for: entries of many languages, casefolded, their words a space apart."""

    def beginnings(self, language: str) -> Mapping[str, bool]:
        """What entries begin with, and themselves, and whether an entry goes on there."""

    def following(self, language: str) -> Mapping[str, Set[str]]:
        """The words that come next in entries, by what these begin with, where words are spaced."""

    def translations(self, language: str, normal: str) -> Translations:
        """Those of an entry; none where it is the beginning of entries only."""


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


class _Part(NamedTuple):
    """What is known of a part of a text between two spaces, as far as it depends on no other."""

    units: int
    unmatched: int
    matches: tuple[Match, ...]  # of one word each
    following: Set[str]  # the words with which entries go on after the word that it ends with
    last: str  # that word, casefolded
    last_length: int  # characters


_NOTHING: frozenset[str] = frozenset()
_UNKNOWN_WORD = _Part(1, 1, (), _NOTHING, "", 0)
_SPENT = _Part(0, 0, (), _NOTHING, "", 0)  # all of it is in an entry


class Search:
    """Looks for the entries of one table, and keeps what it found of the words of texts: they come again."""

    def __init__(self, entries: Entries, longest: int) -> None:
        """``longest`` is how many words an entry has at most."""
        self._entries, self._longest = entries, longest
        self._parts: dict[str, dict[str, _Part]] = {}  # by language
        self._kept = 0

    def __call__(self, language: str, name: str, text: str) -> Words:
        """The words of ``text``, and what is an entry of what the table calls ``name``."""
        if written_without_spaces(language) or not apart_at_spaces(text):
            return self.in_any_text(language, name, text)
        return self._in_parts(name, text)

    def in_any_text(self, language: str, name: str, text: str) -> Words:
        """The same word by word, of any text and language."""
        spaced = not written_without_spaces(language)
        units = units_of(language, text)
        beginnings = self._entries.beginnings(name)
        matches: list[Match] = []
        i = unmatched = 0
        while i < len(units):
            start, stop = units[i]
            unit = text[start:stop]
            match = None
            if unit.casefold() in beginnings:
                match = self._longest_at(name, text, units, i, spaced)
            if match is not None:
                matches.append(match)
            elif _has_letters(unit):
                unmatched += 1
            i += match.words if match is not None else 1
        return Words(len(units), matches, unmatched)

    def _longest_at(
        self, name: str, text: str, units: list[tuple[int, int]], first: int, spaced: bool
    ) -> Match | None:
        beginnings = self._entries.beginnings(name)
        start, stop = units[first]
        normal, last = text[start:stop].casefold(), first
        limit = min(len(units), first + (self._longest if spaced else _LONGEST_RUN))
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
            translations = self._entries.translations(name, normal)
            if translations:
                return Match(start, stop, end - first + 1, translations)
        return None

    # ---- texts with spaces, by what is between these ----------------------------------------------------

    def _in_parts(self, name: str, text: str) -> Words:
        """Entries of one word are known with the part that they stand in; only longer ones are looked for."""
        texts = text.split(" ")
        parts = self._parts_of(name, texts)
        places = list(accumulate(map(len, texts), initial=0))  # without the spaces
        matches: list[Match] = []
        units = unmatched = unknown = 0
        for number, part in enumerate(parts):
            if part is _UNKNOWN_WORD:
                unknown += 1
                continue
            place = places[number] + number
            if part.following and number + 1 < len(parts):
                count, cut, translations = self._over_parts(name, texts, number, part)
                if count:
                    # The entry is the last word of this part to the first word of its last, of which the rest is left.
                    part = self._look_at(name, texts[number][: len(texts[number]) - part.last_length])
                    start = place + len(texts[number]) - parts[number].last_length
                    final = number + count - 1
                    places[final] += cut
                    texts[final] = texts[final][cut:]
                    parts[number + 1 : final] = [_SPENT] * (count - 2)
                    parts[final] = self._look_at(name, texts[final])
                    entry = Match(start, places[final] + final, count, translations)
                    matches += [*_moved(part.matches, place), entry]
                    units += part.units + count
                    unmatched += part.unmatched
                    continue
            if part.matches:
                matches += _moved(part.matches, place)
            units += part.units
            unmatched += part.unmatched
        return Words(units + unknown, matches, unmatched + unknown)

    def _over_parts(
        self, name: str, texts: list[str], number: int, part: _Part
    ) -> tuple[int, int, Translations]:
        """The longest entry of several words that begins with the last word of ``part``, the one of that number.

        Its words, 0 where there is none; how many characters of its last part are in it; what it means.
        """
        normal, following = part.last, part.following
        count, best = 1, (0, 0, _NONE)
        while count < self._longest and number + count < len(texts):
            text = texts[number + count]
            first = text if text.isalpha() else _first_word(text)
            word = first.casefold()
            if word not in following:
                break
            count += 1
            normal = f"{normal} {word}"
            translations = self._entries.translations(name, normal)
            if translations:
                best = count, len(first), translations
            following = self._entries.following(name).get(normal, _NOTHING)
            if not following or len(first) < len(text):
                break
        return best

    def _parts_of(self, name: str, texts: list[str]) -> list[_Part]:
        known = self._parts.setdefault(name, {})
        found = list(map(known.get, texts))
        if None not in found:
            return found  # type: ignore[return-value]
        parts = []
        for text, part in zip(texts, found, strict=True):
            if part is None:
                known[text] = part = self._look_at(name, text)
                self._kept += 1
            parts.append(part)
        if self._kept > _MOST_PARTS:
            self._forget()
        return parts

    def _forget(self) -> None:
        """The half that came first; what is frequent among it comes again."""
        for known in self._parts.values():
            for text in list(islice(known, len(known) // 2)):
                del known[text]
        self._kept = sum(map(len, self._parts.values()))

    def _look_at(self, name: str, part: str) -> _Part:
        """What is to be known of ``part``, which has no space in it."""
        beginnings = self._entries.beginnings(name)
        if part.isalpha():
            units = [(0, len(part))]  # as runs_of has it, sooner
            if part.casefold() not in beginnings:
                return _UNKNOWN_WORD
        else:
            units = runs_of(part)
        matches, unmatched = [], 0
        for start, stop in units:
            translations = self._entries.translations(name, part[start:stop].casefold())
            if translations:
                matches.append(Match(start, stop, 1, translations))
            elif _has_letters(part[start:stop]):
                unmatched += 1
        last, length = "", 0
        if units and units[-1][1] == len(part):
            length = len(part) - units[-1][0]
            last = part[units[-1][0] :].casefold()
        following = self._entries.following(name).get(last, _NOTHING)
        return _Part(len(units), unmatched, tuple(matches), following, last, length)


def _moved(matches: tuple[Match, ...], place: int) -> list[Match]:
    return [Match(place + start, place + end, words, found) for start, end, words, found in matches]


def _first_word(part: str) -> str:
    """The word that ``part`` begins with, if it does with one."""
    units = runs_of(part)
    return part[: units[0][1]] if units and units[0][0] == 0 else ""


def _has_letters(unit: str) -> bool:
    return unit.isalpha() or any(map(str.isalpha, unit))


def _adjacent(text: str, end: int, start: int, spaced: bool) -> bool:
    return text[end:start] == " " if spaced else end == start
