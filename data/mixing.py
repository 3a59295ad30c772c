"""The mixed-language generator: a text of one language becomes a text of at least two.

Source: US20220019743A1 (mixed-language material made from every training text); word substitution after CoSDA-ML
(Qin et al., 2020) and mRASP2 (Pan et al., 2021), with two of their known defects mended: a word's translation is
drawn from all dictionaries that hold it, and languages written without spaces are searched by longest match.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.lexicon import Lexicon, written_without_spaces


class MixedText(NamedTuple):
    """A mixed-language text and how it came about."""

    text: str
    replaced: int  # phrases that were translated
    translatable: int  # phrases that could have been
    words: int
    languages: int


def mix(
    text: str, language: str, lexicon: Lexicon, rate: float, random: np.random.Generator
) -> MixedText | None:
    """Translate about ``rate`` of the translatable phrases of ``text``, each into a language of its own.

    Returns None where the result would not hold at least two languages: no phrase has a translation, or the
    whole text is one phrase.
    """
    words = lexicon.words(language, text)
    if not words.matches:
        return None
    chosen = random.random(len(words.matches)) < rate
    if not chosen.any():
        chosen[random.integers(len(chosen))] = True
    pieces: list[str] = []
    languages: set[str] = set()
    end = 0
    for match, wanted in zip(words.matches, chosen, strict=True):
        if not wanted:
            continue
        # A language first, then one of its words: a language with many synonyms does not crowd out the others.
        by_language: dict[str, list[str]] = {}
        for target, translation in match.translations:
            by_language.setdefault(target, []).append(translation)
        target = list(by_language)[random.integers(len(by_language))]
        translation = by_language[target][random.integers(len(by_language[target]))]
        original = text[match.start : match.end]
        gap = " " if written_without_spaces(language) and not written_without_spaces(target) else ""
        pieces += [text[end : match.start], gap, _in_the_case_of(original, translation), gap]
        languages.add(target)
        end = match.end
    pieces.append(text[end:])
    if not chosen.all() or words.unmatched:  # something of the text is left, and not only placeholders
        languages.add(language)
    if len(languages) < 2:
        return None
    return MixedText("".join(pieces), int(chosen.sum()), len(chosen), words.units, len(languages))


def _in_the_case_of(original: str, translation: str) -> str:
    """Carry capitals over: all of them, or the first."""
    if len(original) > 1 and original.isupper():
        return translation.upper()
    if original[:1].isupper():
        return translation[:1].upper() + translation[1:]
    return translation
