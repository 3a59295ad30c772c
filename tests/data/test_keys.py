"""Invariants: equal keys give equal numbers, other keys others; a permutation hits every position once."""

import numpy as np
import pytest

from data.config import TrainTokenizerConfig
from data.keys import chances, generator, hashed, key, sequence
from training.config import Recipe


def test_a_key_depends_on_every_part_and_on_their_order():
    keys = [
        key(1, "mask"),
        key(1, "order"),
        key(2, "mask"),
        key("mask", 1),
        key(1, "mas", "k"),
        key("1", "mask"),
    ]
    assert len(set(keys)) == len(keys)


def test_equal_keys_give_equal_draws():
    assert generator(3, "x").random(5).tolist() == generator(3, "x").random(5).tolist()
    assert generator(3, "x").random() != generator(3, "y").random()


def test_the_numbers_of_a_key_do_not_depend_on_those_beside_it():
    keys, counts = hashed(key("beside"), np.arange(50)), np.arange(50) % 7
    whole, ends = sequence(keys, counts), np.cumsum(counts)
    for own, count, end in zip(keys, counts, ends, strict=True):
        alone = sequence(np.array([own]), np.array([12]))
        assert whole[end - count : end].tolist() == alone[:count].tolist()
    assert len(set(whole.tolist())) == len(whole)


def test_chances_are_even_within_a_key_and_over_keys():
    drawn = chances(sequence(hashed(key("even"), np.arange(4000)), np.full(4000, 5))).reshape(4000, 5)
    assert 0 <= drawn.min() and drawn.max() < 1
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.06
    places, _ = np.histogram(drawn, 20)
    assert np.abs(places / drawn.size - 0.05).max() < 0.006


@pytest.mark.parametrize("config", [Recipe, TrainTokenizerConfig])
def test_every_seed_that_a_recipe_may_name_makes_a_key(config):
    bounds = {type(bound).__name__: bound for bound in config.model_fields["seed"].metadata}
    lowest, highest = bounds["Ge"].ge, bounds["Lt"].lt - 1
    assert key(lowest, "order") != key(highest, "order")
