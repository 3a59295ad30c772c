"""Word and phrase translations: loading dictionaries with English on one side, finding a text's words in them.

python -m data.lexicon --recipe RECIPE --out FILE        induces one from the recipe's own translations
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from data.languages import PIVOT, primary, tag_of, written_without_spaces
from data.lexicon_search import Search, Translation, Translations, Words
from data.lines import read_lines
from data.recipe import UserError

PHRASE = "phrase"  # fourth column of an entry that is a phrase of running text and in no dictionary
LONGEST_PHRASE = 4  # words of a phrase (ALM, Yang et al., 2020: fewer than five)
_LONGEST_ENTRY = 5  # words of a dictionary's entry that are looked for

_NONE = Translations()
_NOTHING: Mapping[str, bool] = {}


class Entry(NamedTuple):
    """A line of a word list."""

    language: str
    english: str
    translation: str
    kind: str = ""  # PHRASE, or anything


class _Table:
    """Phrase in a language -> its translations in all the others, directly or through English."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Sort ``entries`` by both their sides. A start of a run waits for it, so the loop does little for each."""
        self._of_english: dict[str, list[Entry]] = {}
        self._of_others: dict[str, dict[str, list[Entry]]] = {}  # by language
        self._beginnings: dict[str, dict[str, bool]] = {}  # and whether an entry goes on there
        self._following: dict[str, dict[str, set[str]]] = {}
        self._looked_up = lru_cache(maxsize=1 << 18)(self._look_up)  # texts repeat their words
        seen: dict[str, list[Entry]] = {}  # English as it is written
        for entry in entries:
            language, english, translation, _ = entry
            same = seen.get(english)
            if same is None:
                seen[english] = same = self._begun(self._of_english, PIVOT, _normal(english))
            same.append(entry)
            own = self._of_others.setdefault(language, {})
            self._begun(own, language, _normal(translation)).append(entry)

    def _begun(self, known: dict[str, list[Entry]], language: str, phrase: str) -> list[Entry]:
        """The entries of ``phrase`` in ``known``, those of ``language``; new ones begin with its words, or letters."""
        entries = known.get(phrase)
        if entries is not None:
            return entries
        entries = known[phrase] = []
        beginnings = self._beginnings.setdefault(language, {})
        if written_without_spaces(language):
            beginnings.update(dict.fromkeys(accumulate(phrase[:-1]), True))
        elif " " in phrase:
            following = self._following.setdefault(language, {})
            first, *words = phrase.split(" ")
            for word in words:
                beginnings[first] = True
                following.setdefault(first, set()).add(word)
                first = f"{first} {word}"
        beginnings.setdefault(phrase, False)
        return entries

    def beginnings(self, language: str) -> Mapping[str, bool]:
        """What entries begin with, and themselves, and whether an entry goes on there.

        Beginnings are some first words, or characters where words are not spaced.
        """
        return self._beginnings.get(language, _NOTHING)

    def following(self, language: str) -> Mapping[str, Set[str]]:
        """The words that come next in entries, by what these begin with, where words are spaced."""
        return self._following.get(language, {})

    def translations(self, language: str, normal: str) -> Translations:
        """In languages other than ``language``, without those that look the same."""
        known = self._of_english if language == PIVOT else self._of_others.get(language, {})
        return self._looked_up(language, normal) if normal in known else _NONE

    def _look_up(self, language: str, normal: str) -> Translations:
        found: dict[Translation, str] = {}  # with what a translation looks like
        if language == PIVOT:
            self._find(normal, found)
        else:
            for entry in self._of_others[language][normal]:
                found[(PIVOT, entry.english)] = looks = _normal(entry.english)
                self._find(looks, found)
        own = primary(language)
        return Translations(
            item for item, looks in found.items() if primary(item[0]) != own and looks != normal
        )

    def _find(self, english: str, found: dict[Translation, str]) -> None:
        """Take the translations of ``english`` into ``found``."""
        for language, _, translation, _ in self._of_english.get(english, ()):
            found[(language, translation)] = _normal(translation)


class Lexicon:
    """Every dictionary at once, and beside them the phrases of running text that were induced.

    Dictionaries pair a language with English. A word of another language is translated into English directly,
    and into a third language through English. A phrase is an entry of two to four words in English: such an entry
    of a dictionary is a word and a phrase, one that is marked as a phrase is no word.
    """

    def __init__(self, entries: Sequence[Sequence[str]]) -> None:
        """Take ``(language, English, translation)``, or with a fourth column that may say ``phrase``."""
        given = [fields if isinstance(fields, Entry) else Entry(*fields) for fields in entries]
        self._words = _Table(entry for entry in given if entry.kind != PHRASE)
        self._entries_of_phrases = [
            entry
            for entry in given
            if entry.kind == PHRASE or 2 <= len(entry.english.split()) <= LONGEST_PHRASE
        ]
        self.has_phrases = bool(self._entries_of_phrases)
        self._search_words = Search(self._words, _LONGEST_ENTRY)
        self.languages = frozenset({entry.language for entry in given} | {PIVOT})
        self._names: dict[str, str | None] = {}

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Lexicon:
        """Read tab-separated files of language, English, translation, kind (further columns are ignored)."""
        with _no_collection():
            return cls([entry for path in paths for entry in read_entries(path)])

    def name_of(self, language: str) -> str | None:
        """What the lexicon calls ``language``: the tag, or its nearest parent (zh-Hans-CN, zh-Hans, zh), or None.

        Source: RFC 4647, section 3.4, "lookup".
        """
        known = {tag_of(name): name for name in self.languages}
        tag = tag_of(language)
        while tag and tag not in known:
            tag = tag.rpartition("-")[0]
        return known.get(tag)

    def translations(self, language: str, phrase: str) -> Translations:
        """All translations of a word into other languages, without those that look the same."""
        name = self._name(language)
        return self._words.translations(name, _normal(phrase)) if name else _NONE

    def words(self, language: str, text: str) -> Words:
        """The words of ``text`` and the longest entries of it that have translations, left to right."""
        return self._search_words(language, self._name(language) or "", text)

    def phrases(self, language: str, text: str) -> Words:
        """The same for phrases."""
        return self._search_phrases(language, self._name(language) or "", text)

    @cached_property
    def _search_phrases(self) -> Search:
        """Made when somebody looks for a phrase: most recipes replace words alone."""
        with _no_collection():
            phrases = _Table(self._entries_of_phrases)
        return Search(phrases, LONGEST_PHRASE)

    def _name(self, language: str) -> str | None:
        if language not in self._names:
            self._names[language] = self.name_of(language)
        return self._names[language]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the search for garbage, which goes through the growing tables again and again and finds none.

    Later searches leave them out too: tables live as long as the process, and half a second is spent on a large one.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


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
