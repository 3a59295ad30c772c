"""Spans hold as many tokens as asked, anywhere in the text, and leave one of it."""

from __future__ import annotations

import numpy as np
import pytest

from data.keys import generator
from data.mixing_spans import choose_spans


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 40, 500])
@pytest.mark.parametrize("rate", [0.05, 0.5, 0.95])
def test_as_many_tokens_as_asked_and_never_all(count: int, rate: float) -> None:
    for seed in range(20):
        spans = choose_spans(count, count, rate, generator("spans", seed))
        expected = min(max(1, round(rate * count)), count - 1)
        assert len(spans) == max(0, expected)
        assert (np.diff(spans) > 0).all() and (not len(spans) or 0 <= spans[0] <= spans[-1] < count)


def test_only_the_part_that_can_be_reached_is_replaced() -> None:
    for reach in (-3, 0, 1, 5, 12):
        spans = choose_spans(reach, 12, 0.7, generator(reach))
        assert len(spans) == max(0, min(round(0.7 * 12), reach)) and (spans < max(reach, 0)).all()


def test_every_place_is_as_likely_and_neighbours_go_together() -> None:
    often, runs, tokens = np.zeros(30), 0, 0
    for seed in range(3000):
        spans = choose_spans(30, 30, 0.4, generator("spans", seed))
        often[spans] += 1
        runs, tokens = runs + 1 + int((np.diff(spans) > 1).sum()), tokens + len(spans)
    assert np.abs(often / 3000 - 0.4).max() < 0.04
    assert 3 < tokens / runs < 6
