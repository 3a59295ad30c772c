"""Finding the entries of a word list in a text: the longest that have translations, from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import cached_property, partial
from itertools import accumulate, islice
from typing import NamedTuple, Protocol

from data.languages import written_without_spaces
from data.units import apart_at_spaces, runs_of, units_of

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
    first: str  # the word that it begins with, casefolded; "" where that is something else
    first_length: int  # characters
    last: str  # the word that it ends with
    last_length: int


_NOTHING: frozenset[str] = frozenset()
_UNKNOWN_WORD = _Part(1, 1, (), _NOTHING, "", 0, "", 0)  # what it begins with is itself
_SPENT = _Part(0, 0, (), _NOTHING, "", 0, "", 0)  # all of it is in an entry
_match = partial(tuple.__new__, Match)  # in half of the time that Match takes


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
        unmatched = ahead = 0  # ahead: units that are in an entry already
        for number, (start, stop) in enumerate(units):
            if ahead:
                ahead -= 1
                continue
            unit = text[start:stop]
            goes_on = beginnings.get(unit.casefold())
            if goes_on is not None:
                match = self._longest_at(name, text, units, number, goes_on, spaced)
                if match is not None:
                    matches.append(match)
                    ahead = match.words - 1
                    continue
            if _has_letters(unit):
                unmatched += 1
        return Words(len(units), matches, unmatched)

    def _longest_at(
        self, name: str, text: str, units: list[tuple[int, int]], first: int, goes_on: bool, spaced: bool
    ) -> Match | None:
        """The longest entry from unit ``first`` on, which is the beginning of some and ``goes_on`` or not."""
        beginnings = self._entries.beginnings(name)
        start, stop = units[first]
        last = first
        limit = min(len(units), first + (self._longest if spaced else _LONGEST_RUN)) - 1
        found = [
            text[start:stop].casefold()
        ]  # what an entry could be, each a unit longer than the one before
        while goes_on and last < limit:
            begin, end = units[last + 1]
            if begin != stop if not spaced else text[stop:begin] != " ":
                break
            normal = text[start:end].casefold()
            known = beginnings.get(normal)
            if known is None:
                break
            goes_on, stop, last = known, end, last + 1
            found.append(normal)
        for count in range(len(found), 0, -1):
            stop = units[first + count - 1][1]
            if not spaced and sum(map(str.isalpha, text[start:stop])) < 2:
                break  # one letter of running text says too little to be translated by itself
            translations = self._entries.translations(name, found[count - 1])
            if translations:
                return _match((start, stop, count, translations))
        return None

    # ---- texts with spaces, by what is between these ----------------------------------------------------

    def _in_parts(self, name: str, text: str) -> Words:
        """Entries of one word are known with the part that they stand in; only longer ones are looked for."""
        texts = text.split(" ")
        parts = self._parts_of(name, texts)
        places = list(accumulate(map(len, texts), initial=0))  # without the spaces
        matches: list[Match] = []
        units = unmatched = unknown = 0
        final = len(parts) - 1
        for number, part in enumerate(parts):
            if part is _UNKNOWN_WORD:
                unknown += 1
                continue
            some, without, found, following = part[:4]
            place = places[number] + number
            if following and number < final and _first_word(texts, parts, number + 1) in following:
                longest = self._over_parts(name, texts, parts, number)
                if longest is not None:
                    # From the last word of this part to the first word of its last, of which the rest is left.
                    count, translations = longest
                    length = len(texts[number]) - part.last_length
                    some, without, found, _ = self._look_at(name, texts[number][:length])[:4]
                    some += count
                    to = number + count - 1
                    cut = parts[to].first_length if parts[to] is not _UNKNOWN_WORD else len(texts[to])
                    places[to] += cut
                    texts[to] = texts[to][cut:]
                    parts[number + 1 : to] = [_SPENT] * (count - 2)
                    parts[to] = self._look_at(name, texts[to])
                    found = (*found, _match((length, places[to] + to - place, count, translations)))
            units += some
            unmatched += without
            for start, stop, words, translations in found:
                matches.append(_match((place + start, place + stop, words, translations)))
        return Words(units + unknown, matches, unmatched + unknown)

    def _over_parts(
        self, name: str, texts: list[str], parts: list[_Part], number: int
    ) -> tuple[int, Translations] | None:
        """The longest entry of several words that begins with the last word of a part: how many, what it means."""
        normal, following = parts[number].last, parts[number].following
        count, best = 1, None
        while count < self._longest and number + count < len(texts):
            there = number + count
            word = _first_word(texts, parts, there)
            if word not in following:
                break
            count += 1
            normal = f"{normal} {word}"
            translations = self._entries.translations(name, normal)
            if translations:
                best = count, translations
            following = self._entries.following(name).get(normal, _NOTHING)
            if parts[there] is not _UNKNOWN_WORD and parts[there].first_length < len(texts[there]):
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
                matches.append(_match((start, stop, 1, translations)))
            elif _has_letters(part[start:stop]):
                unmatched += 1
        first, last = part[: units[0][1]] if units and units[0][0] == 0 else "", ""
        if units and units[-1][1] == len(part):
            last = part[units[-1][0] :]
        following = self._entries.following(name).get(last.casefold(), _NOTHING)
        ends = first.casefold(), len(first), last.casefold(), len(last)
        return _Part(len(units), unmatched, tuple(matches), following, *ends)


def _first_word(texts: list[str], parts: list[_Part], number: int) -> str:
    """The word that a part begins with, casefolded; "" where that is something else."""
    part = parts[number]
    return texts[number].casefold() if part is _UNKNOWN_WORD else part.first


def _has_letters(unit: str) -> bool:
    return unit.isalpha() or any(map(str.isalpha, unit))
