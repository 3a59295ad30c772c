"""Invariants: 80/10/10 of the chosen tokens, the rate is exact on average, special ids are never drawn, and a text is
masked alike whatever texts stand beside it."""

import numpy as np
import pytest

from data.keys import chances, hashed, key, sequence
from data.masking import FIRST_ORDINARY_ID, choose, corrupt
from data.ragged import starts_of


def keys(count, name="test"):
    return hashed(key(name), np.arange(count))


@pytest.mark.parametrize("rate", [0.15, 0.25, 0.9])
def test_those_that_drew_the_smallest_numbers_are_chosen_and_at_least_one(rate):
    lengths = np.array([0, 1, 2, 3, 17, 0, 100, 1])
    found, _ = choose(lengths, rate, keys(8))
    for own, start, length in zip(keys(8), starts_of(lengths), lengths, strict=True):
        # The definition, for one text: a number for each token, and one to round by.
        *drawn, rounding = sequence(np.array([own]), np.array([length + 1]))
        wanted = max(1, int(rate * length + chances(rounding))) if length else 0
        smallest = sorted(range(length), key=lambda i: drawn[i])[:wanted]  # noqa: B023
        assert np.flatnonzero(found[start : start + length]).tolist() == sorted(smallest)
        assert len(smallest) >= min(1, length)


def test_the_mean_rate_is_the_rate_and_every_place_is_as_likely():
    found, _ = choose(np.full(4000, 30), 0.15, keys(4000))
    counts = found.reshape(4000, 30).sum(1)
    assert abs(counts.mean() / 30 - 0.15) < 0.002
    assert set(counts) == {4, 5}
    assert np.abs(found.reshape(4000, 30).mean(0) - 0.15).max() < 0.03


def test_of_the_chosen_tokens_80_percent_are_masked_10_random_10_kept():
    ids, lengths = np.full(100_000, 7, dtype=np.int32), np.full(1000, 100)
    masked = corrupt(ids, lengths, 0.15, 999, keys(1000, "corrupt"))
    assert masked.counts.sum() == len(masked.predicted) and set(masked.counts) == {15}
    places = np.repeat(starts_of(lengths), masked.counts) + masked.predicted
    shown = masked.shown[places]
    assert (masked.targets == 7).all()
    assert abs((shown == 999).mean() - 0.8) < 0.01
    assert abs((shown == 7).mean() - 0.1) < 0.01
    others = shown[(shown != 999) & (shown != 7)]
    assert others.min() >= FIRST_ORDINARY_ID and others.max() < 999
    assert len(np.unique(others)) > 600  # of 995, drawn 1,500 times
    untouched = np.delete(masked.shown, places)
    assert (untouched == 7).all() and (ids == 7).all()


def test_a_text_is_masked_alike_whatever_stands_beside_it():
    lengths = np.array([5, 0, 40, 1, 12])
    ids = np.arange(58, dtype=np.int32) + 10
    whole = corrupt(ids, lengths, 0.3, 999, keys(5))
    ends, counts = np.cumsum(lengths), np.cumsum(whole.counts)
    for n, (end, count) in enumerate(zip(ends, counts, strict=True)):
        mine = slice(end - lengths[n], end)
        alone = corrupt(ids[mine], lengths[n : n + 1], 0.3, 999, keys(5)[n : n + 1])
        predicted = slice(count - whole.counts[n], count)
        assert alone.shown.tolist() == whole.shown[mine].tolist()
        assert alone.predicted.tolist() == whole.predicted[predicted].tolist()
        assert alone.targets.tolist() == whole.targets[predicted].tolist()
