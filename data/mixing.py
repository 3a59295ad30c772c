"""The mixed-language generator: a text of one language becomes a text of at least two.

    dictionary   words in other languages, from every dictionary that holds the word      (CoSDA-ML, mRASP2)
    phrase       phrases of two to four words by aligned phrases                            (ALM)
    sentence     every second sentence by its translation in another text of the record    (Unicoder)

Source: US20220019743A1 (mixed-language material made from every training text); word substitution after CoSDA-ML
(Qin et al., 2020) and mRASP2 (Pan et al., 2021), with two of their known defects mended: a word's translation is
drawn from all dictionaries that hold it, and languages written without spaces are searched by longest match.
Phrases after Yang et al. (2020), sentences after Huang et al. (2019). Spans of pseudo tokens, which are no text
before the model has written them, are in data/mixing_spans.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import regex

from data.languages import primary, written_without_spaces
from data.lexicon_search import Translation, Words
from data.units import units_of

_CAPITALISED = frozenset({"de", "en"})


class Mixture(NamedTuple):
    """How one side of an example was mixed; words are tokens where pseudo tokens stand for them."""

    generator: str
    replaced: int  # of those that the model is to write none, until it has
    translatable: int
    words: int
    languages: int
    cut: bool  # it lost its end for want of room


class MixedText(NamedTuple):
    """A mixed-language text and how it came about; words are characters where a language has no spaces."""

    text: str
    replaced: int  # words that were translated
    translatable: int  # words that could have been
    words: int
    languages: int


def mix(text: str, language: str, words: Words, rate: float, draws: Sequence[float]) -> MixedText | None:
    """Translate about ``rate`` of the matches in ``words``, each into a language of its own.

    At least one is translated, so that short texts are translated at a higher rate. Returns None where the result
    would not hold at least two languages: nothing has a translation, or the whole text is one match.

    Args:
        text: the text.
        language: its language.
        words: what a ``Lexicon`` found in it, its words or its phrases.
        rate: the chance of each match.
        draws: numbers in [0, 1) of this use alone, three for each match: whether, into which language, as what.

    """
    matches = words.matches
    if not matches:
        return None
    chances = draws[: 3 * len(matches) : 3]
    chosen = [number for number, chance in enumerate(chances) if chance < rate]
    if not chosen:
        chosen = [min(range(len(matches)), key=chances.__getitem__)]
    pieces: list[str] = []
    languages: set[str] = set()
    end = replaced = 0
    spaced = not written_without_spaces(language)
    for number in chosen:
        match = matches[number]
        # A language first, then one of its words: a language with many synonyms does not crowd out the others.
        of_languages = match.translations.of_languages
        target, those = of_languages[int(draws[3 * number + 1] * len(of_languages))]
        translation = those[int(draws[3 * number + 2] * len(those))]
        pieces.append(text[end : match.start])
        end = match.end
        translation = _in_the_case_of(text[match.start : end], translation, target)
        if not spaced and not written_without_spaces(target):
            translation = f" {translation} "
        pieces.append(translation)
        languages.add(primary(target))
        replaced += match.words
    pieces.append(text[end:])
    if (
        len(chosen) < len(matches) or words.unmatched
    ):  # something of the text is left, and not only placeholders
        languages.add(primary(language))
    if len(languages) < 2:
        return None
    covered = sum(match.words for match in matches)
    return MixedText("".join(pieces), replaced, covered, words.units, len(languages))


def _in_the_case_of(original: str, translation: str, target: str) -> str:
    """Carry capitals over: all of them, the first, or none.

    Dictionaries of interfaces begin every entry with a capital. Taken away is only that one, and not in German and
    English, where it may belong to the word (Haus, Monday).
    """
    if len(original) > 1 and original.isupper():
        return translation.upper()
    if original[:1].isupper():
        return translation[:1].upper() + translation[1:]
    if original[:1].islower() and translation[1:].islower() and primary(target) not in _CAPITALISED:
        return translation[:1].lower() + translation[1:]
    return translation


# ---- sentences ------------------------------------------------------------------------------------------

# A sentence ends at a mark of Unicode's Sentence_Terminal, with closing quotes and brackets after it: at a full-width
# mark, or where white space follows and then no small letter ("z. B. das" is one sentence, "z. B. Haus" is two:
# who compares numbers of sentences sees it).
_END = regex.compile(
    r"(?:(?:[。！？｡]+[\p{Pe}\p{Pf}\"']*)|(?:[\p{Sentence_Terminal}…]+[\p{Pe}\p{Pf}\"']*(?=\s+\P{Ll})))\s*",
    regex.V1,
)


def sentences_of(text: str) -> list[str]:
    """The sentences of ``text``, each with the white space after it; joined they are the text again.

    A text of several lines (a document) was split by whoever made it: each of its lines is a sentence.
    """
    if "\n" in text:
        return regex.findall(r"\s*\S[^\n]*\s*", text)
    found: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if any(character.isalnum() for character in text[start : match.start()]):
            found.append(text[start : match.end()])
            start = match.end()
    if start < len(text):
        found.append(text[start:])
    return found


def mix_sentences(
    text: str, language: str, others: Sequence[Translation], random: np.random.Generator
) -> MixedText | None:
    """Replace every second sentence of ``text`` by its translation, beginning with the first or the second.

    Sentences are taken to be translations of each other by their number: only those of ``others`` serve that are
    in another language and have as many sentences as the text, two or more. Each sentence is drawn from one of
    them. Returns None where none serves.

    Args:
        text: the text.
        language: its language.
        others: (language, text) of the other texts of its record.
        random: numbers of this use alone.

    """
    own = sentences_of(text)
    if len(own) < 2:
        return None
    served = [
        (other, found)
        for other, found in ((other, sentences_of(theirs)) for other, theirs in others)
        if primary(other) != primary(language) and len(found) == len(own)
    ]
    if not served:
        return None
    pieces = list(own)
    languages = {primary(language)}
    words = [len(units_of(language, sentence)) for sentence in own]
    chosen = []
    for number in range(int(random.integers(2)), len(own), 2):
        differing = [(o, found[number]) for o, found in served if not _same(found[number], own[number])]
        if not differing:  # left untranslated in every language
            continue
        other, sentence = differing[random.integers(len(differing))]
        gap = own[number][len(own[number].rstrip()) :]
        if not written_without_spaces(other):  # spaces about it, where the text has none
            gap = gap or " " * (number + 1 < len(own))
            if number and not pieces[number - 1][-1:].isspace():
                pieces[number - 1] += " "
        pieces[number] = sentence.rstrip() + gap
        languages.add(primary(other))
        chosen.append(number)
    if not chosen:
        return None
    replaced = sum(words[number] for number in chosen)
    return MixedText("".join(pieces), replaced, sum(words), sum(words), len(languages))


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
