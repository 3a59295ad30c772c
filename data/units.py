"""What the words of a text are: runs of letters and digits, or characters where a language has no spaces."""

from __future__ import annotations

import re

import regex

from data.languages import written_without_spaces

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
_MAY_HOLD_SPACES = re.compile(r"%\(|[{<]")
# Inside a run without spaces: a word of another script or a number is whole, the rest goes by grapheme clusters,
# so that no vowel sign or tone mark (Thai, Burmese) is torn from its letter. Thai and Lao write some vowels as letters
# before or after their consonant: without these joined to it, นก (bird) would be found in ในการ (in the).
_CLUSTER = regex.compile(
    r"[\p{Latin}\p{Greek}\p{Cyrillic}\p{M}]+|\p{Nd}+"
    r"|[\u0E40-\u0E44\u0EC0-\u0EC4]?\X[\u0E30\u0E32\u0E33\u0E45\u0EB0\u0EB2\u0EB3]*",
    regex.V1,
)


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


def apart_at_spaces(text: str) -> bool:
    """Whether the runs of ``text`` are those of its parts between spaces: no placeholder goes on over one."""
    return _MAY_HOLD_SPACES.search(text) is None
