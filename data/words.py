"""Encoding word by word: most words of a text were encoded before, and a word's ids do not depend on its neighbours.

That holds where the tokenizer cuts at spaces before anything else (``Tokenizer.cuts_at_spaces``): those of XLM-R, and
those that are trained here. Of others, and of the rare text in which a character reaches over a space, whole texts are
encoded. The ids are those of ``Tokenizer.encode`` in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, islice, pairwise

import numpy as np
import regex

from data.ragged import places
from data.tokenizer import Tokenizer

MOST = 1 << 18  # words, about 50 MB
_COUNTS_TWICE = 32  # characters: a longer word, a sentence without spaces, counts as several
# The normaliser looks at characters as people see them (grapheme clusters): these hold a space and more.
_OVER_A_SPACE = regex.compile(r"\p{GCB=Prepend} | [\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]")


class _Numbers(dict[str, int]):
    """The number of each word; a new one gets the next."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class WordEncoder:
    """Texts to ids through the words that it has seen."""

    def __init__(self, tokenizer: Tokenizer, most: int = MOST) -> None:
        """``most`` is how many words are kept; where there are more, the half that was used most is."""
        self._tokenizer, self._most = tokenizer, most
        self._numbers = _Numbers()
        self._size = 0  # words, a long one counted as several
        self._ids = np.empty(0, np.int32)  # of all words, end to end, and room for more
        self._starts = np.zeros(1, np.int64)  # of each word, and where the next one is to start
        self._lengths = np.empty(0, np.int64)
        self._uses = np.empty(0, np.int64)

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, without special tokens around it."""
        if not self._tokenizer.cuts_at_spaces:
            return self._tokenizer.encode(texts)
        of_texts = [_words_of(text) for text in texts]
        words = list(chain.from_iterable(of_texts))
        known = len(self._numbers)
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
        self._encode(list(islice(reversed(self._numbers), len(self._numbers) - known))[::-1])
        np.add.at(self._uses, numbers, 1)
        lengths = self._lengths[numbers]
        ids = self._ids[places(self._starts[numbers], lengths)]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        cuts = ends[np.cumsum([0, *map(len, of_texts)])].tolist()
        if self._size > self._most:
            self._forget()
        return [ids[start:end] for start, end in pairwise(cuts)]

    def _encode(self, new: list[str]) -> None:
        """Take in the words that were numbered last."""
        if not new:
            return
        encoded = self._tokenizer.encode(new)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        known = len(self._numbers) - len(new)
        end = int(self._starts[known])
        self._size += sum(map(_size_of, new))
        self._ids = _followed_by(self._ids, end, np.concatenate(encoded))
        self._starts = _followed_by(self._starts, known + 1, end + np.cumsum(lengths))
        self._lengths = _followed_by(self._lengths, known, lengths)
        self._uses = _followed_by(self._uses, known, np.zeros(len(new), np.int64))

    def _forget(self) -> None:
        words = list(self._numbers)
        order = np.argsort(-self._uses[: len(words)], kind="stable")
        sizes = np.cumsum([_size_of(words[number]) for number in order.tolist()])
        kept = np.sort(order[sizes <= self._most // 2])
        self._numbers = _Numbers((words[number], place) for place, number in enumerate(kept.tolist()))
        self._size = int(sizes[len(kept) - 1]) if len(kept) else 0
        self._ids = self._ids[places(self._starts[kept], self._lengths[kept])]
        self._lengths = self._lengths[kept]
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
        self._uses = self._uses[kept] // 2  # those of long ago count less and less


def _size_of(word: str) -> int:
    return 1 + len(word) // _COUNTS_TWICE


def _followed_by(values: np.ndarray, count: int, more: np.ndarray) -> np.ndarray:
    """The first ``count`` of ``values`` and then ``more``: in place, or in an array with room for as many again."""
    end = count + len(more)
    if end > len(values):
        values = np.concatenate([values[:count], np.empty(2 * end - count, values.dtype)])
    values[count:end] = more
    return values


encoder_of = lru_cache(maxsize=4)(WordEncoder)  # the one of a tokenizer, with what it has seen


def _words_of(text: str) -> list[str]:
    if not text.isascii() and _OVER_A_SPACE.search(text):
        return [text]
    return text.split(" ")
