"""Invariants: 80/10/10 of the chosen tokens, the rate is exact on average, special ids are never drawn."""

import numpy as np
import pytest

from data.keys import generator
from data.masking import FIRST_ORDINARY_ID, choose, corrupt


@pytest.mark.parametrize("count", [1, 2, 3, 17, 100])
@pytest.mark.parametrize("rate", [0.15, 0.25, 0.9])
def test_choose_gives_distinct_ascending_positions_and_at_least_one(count, rate):
    chosen = choose(count, rate, generator(count, str(rate)))
    assert len(chosen) >= 1
    assert (np.diff(chosen) > 0).all() and 0 <= chosen[0] and chosen[-1] < count


def test_choose_from_nothing_is_nothing():
    assert len(choose(0, 0.15, generator(0))) == 0


def test_the_mean_rate_is_the_rate():
    counts = [len(choose(30, 0.15, generator("rate", i))) for i in range(2000)]
    assert abs(np.mean(counts) / 30 - 0.15) < 0.002
    assert set(counts) == {4, 5}


def test_of_the_chosen_tokens_80_percent_are_masked_10_random_10_kept():
    ids = np.full(100_000, 7, dtype=np.int32)
    masked = corrupt(ids, 0.15, 999, generator("corrupt"))
    shown = masked.shown[masked.predicted]
    assert (masked.targets == 7).all()
    assert abs((shown == 999).mean() - 0.8) < 0.01
    assert abs((shown == 7).mean() - 0.1) < 0.01
    others = shown[(shown != 999) & (shown != 7)]
    assert others.min() >= FIRST_ORDINARY_ID and others.max() < 999
    untouched = np.delete(masked.shown, masked.predicted)
    assert (untouched == 7).all() and (ids == 7).all()
