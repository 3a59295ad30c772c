"""Encoding word by word: most words of a text were encoded before, and a word's ids do not depend on its neighbours.

That holds where the tokenizer cuts at spaces before anything else (``Tokenizer.cuts_at_spaces``): those of XLM-R, and
those that are trained here. Of others, and of the rare text in which a character reaches over a space, whole texts are
encoded. The ids are those of ``Tokenizer.encode`` in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import regex

from data.tokenizer import Tokenizer

_KEPT = 1 << 17  # words, about 30 MB
_LONGEST_KEPT = 32  # characters: a sentence without spaces does not come again
# The normaliser looks at characters as people see them (grapheme clusters): these hold a space and more.
_OVER_A_SPACE = regex.compile(r"\p{GCB=Prepend} | [\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]")


class WordEncoder:
    """Texts to ids through the words that it has seen."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, without special tokens around it."""
        if not self._tokenizer.cuts_at_spaces:
            return self._tokenizer.encode(texts)
        seen = self._seen
        of_texts = [_words_of(text) for text in texts]
        new = list({word for words in of_texts for word in words if word not in seen})
        here = dict(zip(new, (ids.tolist() for ids in self._tokenizer.encode(new)), strict=True))
        found = [
            np.array([i for word in words for i in (seen.get(word) or here.get(word, ()))], np.int32)
            for words in of_texts
        ]
        if len(seen) + len(here) > _KEPT:
            seen.clear()
        seen.update((word, ids) for word, ids in here.items() if len(word) <= _LONGEST_KEPT)
        return found


encoder_of = lru_cache(maxsize=4)(WordEncoder)  # the one of a tokenizer, with what it has seen


def _words_of(text: str) -> list[str]:
    if not text.isascii() and _OVER_A_SPACE.search(text):
        return [text]
    return text.split(" ")
