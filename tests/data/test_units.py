"""Where the words of a text stand: by either of two patterns, which say the same wherever the faster one is asked."""

import re
import sys

import regex

from data.units import _NOT_PLAIN, _PLAIN_WORD, _WORD, runs_of


def test_both_patterns_agree_on_every_character_that_the_faster_one_is_asked_about():
    plain = [
        character for character in map(chr, range(sys.maxunicode + 1)) if not _NOT_PLAIN.search(character)
    ]
    assert len(plain) > 30_000
    for character in plain:
        is_word = regex.fullmatch(r"\w", character, regex.V1) is not None
        assert (re.fullmatch(r"\w", character) is not None) == is_word, hex(ord(character))


def test_words_of_the_store_are_found_alike(world):
    corpus = world[1].corpora["rows"]
    texts = [corpus.text(segment) for segment in range(0, corpus.segments, 5)]
    asked = [text for text in texts if not _NOT_PLAIN.search(text)]
    assert len(asked) > len(texts) / 2 and len(asked) < len(texts)
    for text in asked:
        assert [match.span() for match in _PLAIN_WORD.finditer(text)] == [
            match.span() for match in _WORD.finditer(text)
        ]


def test_marks_belong_to_their_words():
    assert [text[start:end] for text in ("हिन्दी का", "cafe\u0301 noir") for start, end in runs_of(text)] == [
        "हिन्दी", "का", "cafe\u0301", "noir",
    ]  # fmt: skip
