"""Invariants: equal keys give equal numbers, other keys others; a permutation hits every position once."""

import numpy as np
import pytest

from data.config import TrainTokenizerConfig
from data.keys import generator, key, permuted
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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_permuted_is_a_permutation(size):
    assert sorted(permuted(np.arange(size), size, key(size)).tolist()) == list(range(size))


def test_permuted_needs_no_neighbours():
    whole = permuted(np.arange(1000), 1000, 5)
    assert permuted(np.array([7, 999]), 1000, 5).tolist() == whole[[7, 999]].tolist()


def test_permutations_of_different_keys_are_unrelated():
    a, b = permuted(np.arange(10_000), 10_000, 1), permuted(np.arange(10_000), 10_000, 2)
    assert (a == b).mean() < 0.002
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert abs(np.corrcoef(a, np.arange(10_000))[0, 1]) < 0.05


def test_positions_far_out_cost_nothing():
    size = 10**12
    found = permuted(np.array([0, 1, size - 1]), size, 9)
    assert len(set(found.tolist())) == 3 and (found < size).all() and (found >= 0).all()


@pytest.mark.parametrize("config", [Recipe, TrainTokenizerConfig])
def test_every_seed_that_a_recipe_may_name_makes_a_key(config):
    bounds = {type(bound).__name__: bound for bound in config.model_fields["seed"].metadata}
    lowest, highest = bounds["Ge"].ge, bounds["Lt"].lt - 1
    assert key(lowest, "order") != key(highest, "order")
