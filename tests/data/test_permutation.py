"""A permutation sends every position to one place, needs no neighbours, and tabulated it is what it is by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.keys import key
from data.permutation import Permutation, permuted_parts


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_it_is_a_permutation(size):
    assert sorted(Permutation(size, key(size))(np.arange(size)).tolist()) == list(range(size))


def test_it_needs_no_neighbours():
    permutation = Permutation(1000, 5)
    assert permutation(np.array([7, 999])).tolist() == permutation(np.arange(1000))[[7, 999]].tolist()


def test_those_of_different_keys_are_unrelated():
    a, b = Permutation(10_000, 1)(np.arange(10_000)), Permutation(10_000, 2)(np.arange(10_000))
    assert (a == b).mean() < 0.002
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert abs(np.corrcoef(a, np.arange(10_000))[0, 1]) < 0.05


def test_positions_far_out_cost_nothing():
    size = 10**12
    found = Permutation(size, 9)(np.array([0, 1, size - 1]))
    assert len(set(found.tolist())) == 3 and (found < size).all() and (found >= 0).all()


SIZES = st.one_of(
    st.integers(1, 300), st.integers(1, 1 << 33), st.sampled_from([1 << 32, (1 << 32) + 1, 1 << 40])
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, st.integers(0, 2**63), st.floats(0, 1), st.integers(0, 400)), max_size=7))
def test_stretches_of_many_at_once_are_those_of_each_by_itself(asked):
    permutations = [Permutation(size, number) for size, number, _, _ in asked]
    parts = [
        (first, min(count, size - first))
        for size, _, place, count in asked
        for first in [min(int(place * size), size - 1)]
    ]
    found = permuted_parts(parts, permutations)
    assert len(found) == len(parts)
    for (first, count), permutation, column in zip(parts, permutations, found, strict=True):
        assert column.dtype == np.int64
        assert column.tolist() == permutation(np.arange(first, first + count)).tolist()
