"""Encoding word by word: most words of a text were encoded before, and a word's ids do not depend on its neighbours.

That holds where the tokenizer cuts at spaces before anything else (``Tokenizer.cuts_at_spaces``): those of XLM-R, and
those that are trained here. Of others, and of the rare text in which a character reaches over a space, whole texts are
encoded. The ids are those of ``Tokenizer.encode`` in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np
import regex

from data.ragged import places, starts_of
from data.tokenizer import Tokenizer

MOST = 1 << 18  # words, about 50 MB
_LONGEST_KEPT = 32  # characters: a sentence without spaces does not come again
# The normaliser looks at characters as people see them (grapheme clusters): these hold a space and more.
_OVER_A_SPACE = regex.compile(r"\p{GCB=Prepend} | [\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]")


class WordEncoder:
    """Texts to ids through the words that it has seen."""

    def __init__(self, tokenizer: Tokenizer, most: int = MOST) -> None:
        """``most`` is how many words are kept; where there are more, the half that was used most is."""
        self._tokenizer, self._most = tokenizer, most
        self._seen: dict[str, int] = {}  # the number of a word
        self._ids = np.empty(0, np.int32)  # of all words, end to end
        self._starts = np.empty(0, np.int64)  # of each word
        self._lengths = np.empty(0, np.int64)
        self._uses = np.empty(0, np.int64)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, without special tokens around it."""
        if not self._tokenizer.cuts_at_spaces:
            return self._tokenizer.encode(texts)
        of_texts = [_words_of(text) for text in texts]
        words = list(chain.from_iterable(of_texts))
        long = self._see({word for word in words if word not in self._seen})
        numbers = np.fromiter(map(self._seen.__getitem__, words), np.int64, len(words))
        np.add.at(self._uses, numbers, 1)
        lengths = self._lengths[numbers]
        ids = self._ids[places(self._starts[numbers], lengths)]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        cuts = ends[np.cumsum([0, *map(len, of_texts)])].tolist()
        self._forget(long)
        return [ids[start:end] for start, end in pairwise(cuts)]

    def _see(self, words: set[str]) -> list[str]:
        """Take in new words, last of all those that are to be forgotten at once; returns these."""
        long = [word for word in words if len(word) > _LONGEST_KEPT]
        new = [*words.difference(long), *long]
        encoded = self._tokenizer.encode(new)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        self._seen.update(zip(new, range(len(self._seen), len(self._seen) + len(new)), strict=True))
        self._starts = np.concatenate([self._starts, len(self._ids) + starts_of(lengths)])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._ids = np.concatenate([self._ids, *encoded])
        self._uses = np.concatenate([self._uses, np.zeros(len(new), np.int64)])
        return long

    def _forget(self, long: Sequence[str]) -> None:
        for word in long:
            del self._seen[word]
        count = len(self._seen)
        end = int(self._starts[count]) if count < len(self._starts) else len(self._ids)
        self._ids, self._starts, self._lengths, self._uses = (
            self._ids[:end], self._starts[:count], self._lengths[:count], self._uses[:count]
        )  # fmt: skip
        if count <= self._most:
            return
        kept = np.sort(np.argsort(-self._uses, kind="stable")[: self._most // 2])
        words = list(self._seen)
        self._seen = {words[number]: place for place, number in enumerate(kept.tolist())}
        self._ids = self._ids[places(self._starts[kept], self._lengths[kept])]
        self._lengths = self._lengths[kept]
        self._starts = starts_of(self._lengths)
        self._uses = self._uses[kept] // 2  # those of long ago count less and less


encoder_of = lru_cache(maxsize=4)(WordEncoder)  # the one of a tokenizer, with what it has seen


def _words_of(text: str) -> list[str]:
    if not text.isascii() and _OVER_A_SPACE.search(text):
        return [text]
    return text.split(" ")
