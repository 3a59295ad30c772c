"""Token overlap of pairs and the accuracy of a bag of words, against counts written out by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from data.overlap import token_overlap


def overlap(
    pairs: Sequence[tuple[list[int], list[int]]], groups: Sequence[int] | None = None
) -> tuple[Any, ...]:
    sides = [[np.array(pair[side], np.int32) for pair in pairs] for side in (0, 1)]
    return token_overlap(sides[0], sides[1], np.array(range(len(pairs)) if groups is None else groups))


def test_common_tokens_are_counted_as_often_as_both_sides_have_them() -> None:
    pairs = [([5, 5, 6], [5, 5, 5, 7, 8]), ([5, 6], [7, 8]), ([9], [9])]
    common, _, _ = overlap(pairs)
    assert common.tolist() == pytest.approx([2 / 3, 0, 1])


def test_the_bag_of_words_finds_what_shares_tokens_and_nothing_else() -> None:
    copies = [([10 * i, 10 * i + 1], [10 * i + 1, 3, 10 * i]) for i in range(1, 5)]
    _, rows, correct = overlap(copies)
    assert rows.tolist() == [2] * 4 and correct.tolist() == [2] * 4
    foreign = [([10 * i], [10 * i + 5]) for i in range(1, 5)]  # nothing in common: all are equally near
    _, rows, correct = overlap(foreign)
    assert rows.tolist() == [2] * 4 and correct.tolist() == [0] * 4


def test_rows_of_one_group_are_no_negatives_and_a_pair_alone_has_none() -> None:
    _, rows, correct = overlap([([5, 6], [5, 6]), ([5, 6], [5, 6])], [1, 1])
    assert rows.tolist() == [0, 0] == correct.tolist()
    _, rows, _ = overlap([([5], [5])])
    assert rows.tolist() == [0]
    assert [len(each) for each in overlap([])] == [0, 0, 0]


def test_it_equals_a_plain_count_on_random_pairs() -> None:
    random = np.random.default_rng(3)
    sides = [
        (random.integers(5, 25, random.integers(1, 12)).tolist(), random.integers(5, 25, 7).tolist())
        for _ in range(40)
    ]
    groups = random.integers(0, 30, 40).tolist()
    common, rows, correct = overlap(sides, groups)

    def cosine(one: Counter[int], other: Counter[int]) -> float:
        dot = sum(one[t] * other[t] for t in one)
        return dot / np.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))

    bags = [[Counter(text) for text in pair] for pair in sides]
    for i, (one, other) in enumerate(bags):
        shared = sum((one & other).values()) / min(sum(one.values()), sum(other.values()))
        assert common[i] == pytest.approx(shared)
        expected_rows = expected = 0
        for mine, theirs in ((0, 1), (1, 0)):
            negatives = [cosine(bags[i][mine], bags[j][theirs]) for j in range(40) if groups[j] != groups[i]]
            expected_rows += bool(negatives)
            expected += cosine(bags[i][mine], bags[i][theirs]) > max(negatives) + 1e-12
        assert (rows[i], correct[i]) == (expected_rows, expected)
