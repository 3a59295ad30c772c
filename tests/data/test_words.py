"""Word by word the ids are those of the whole text, whatever stands in it; what was seen is not encoded again."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.words import WordEncoder

# Characters that reach over a space, or become one, or none: marks, joiners, selectors, prepended signs, odd spaces.
ODD = "a b\u0301\u0300 \u200d\ufe0f\u0600\u06dd\u0bcb \u00a0\u3000\u2028\u0085\t\r\n\u200b\u00ad\ufeffßİŉ①ﬁ가각จำ日本"


@pytest.fixture(scope="module")
def tokenizer(world):
    return world[2].tokenizer


def test_of_real_texts_with_words_of_many_languages(world, tokenizer):
    corpus = world[1].corpora["rows"]
    texts = [corpus.text(s) for s in range(0, corpus.segments, 5)]
    encode = WordEncoder(tokenizer)
    assert tokenizer.cuts_at_spaces
    for batch in (texts[:100], texts, []):
        for found, whole in zip(encode(batch), tokenizer.encode(batch), strict=True):
            assert found.dtype == whole.dtype == np.int32 and np.array_equal(found, whole)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.sampled_from(ODD), max_size=12), max_size=4))
@example(["a \u0301b", "\u0600 a", " a  b ", "", " ", "a\u200d b", "\u00a0 a", "a \u00a0"])
def test_of_texts_whose_characters_meet_over_spaces(tokenizer, texts):
    for found, whole in zip(WordEncoder(tokenizer)(texts), tokenizer.encode(texts), strict=True):
        assert np.array_equal(found, whole)


class Asked:
    """A tokenizer that keeps what it is asked to encode."""

    cuts_at_spaces = True

    def __init__(self, tokenizer):
        self._tokenizer, self.words = tokenizer, []

    def encode(self, texts):
        self.words.extend(texts)
        return self._tokenizer.encode(texts)


def test_a_word_that_was_seen_is_not_encoded_again(tokenizer):
    asked = Asked(tokenizer)
    encode = WordEncoder(asked)
    encode(["the door is open", "the door"])
    encode(["is the window open"])
    assert sorted(asked.words) == ["door", "is", "open", "the", "window"]


def test_a_tokenizer_that_sees_beyond_words_gets_whole_texts(tokenizer):
    class Whole:
        cuts_at_spaces = False
        encode = staticmethod(lambda texts: [np.array([len(text)], np.int32) for text in texts])

    assert [ids.tolist() for ids in WordEncoder(Whole())(["a b", "c"])] == [[3], [1]]


def test_what_is_used_most_is_kept_when_there_is_too_much(tokenizer):
    asked = Asked(tokenizer)
    encode = WordEncoder(asked, most=16)
    texts = [f"the door is open {chr(97 + n)}{chr(98 + n)} {chr(97 + n) * 100}" for n in range(12)]
    for text in texts:
        (found,) = encode([text])
        assert np.array_equal(found, tokenizer.encode([text])[0])
    assert all(asked.words.count(word) == 1 for word in ("the", "door", "is", "open"))
    asked.words.clear()
    encode(texts)
    assert "the" not in asked.words
    again = [word for word in asked.words if len(word) == 100]
    assert 9 <= len(again) <= 12  # one of so many characters counts as four words, and half of 16 is kept
