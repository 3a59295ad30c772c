"""How long a text is, in letters of an alphabet, so that scripts can be compared."""

from __future__ import annotations

import regex

# A Han character says about as much as three letters, a syllable of kana or Hangul as two.
_HAN, _SYLLABLES = regex.compile(r"\p{Han}"), regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Hangul}]")


def letters_of(text: str) -> int:
    """The length of a text in letters."""
    if text.isascii():
        return len(text)
    return len(text) + 2 * len(_HAN.findall(text)) + len(_SYLLABLES.findall(text))
