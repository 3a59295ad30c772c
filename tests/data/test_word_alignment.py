"""The word aligner on a made language and beside a plain model; its links and its phrases against tables by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.special import digamma

from data import word_alignment
from data.word_alignment import (
    FIRST_TENSION,
    ITERATIONS,
    NULL_CHANCE,
    PASSES,
    PRIOR,
    Sentences,
    aligned,
    best_sources,
    consistent_phrases,
    symmetrised,
)


def made_bitext(
    seed: int, sentences: int = 300
) -> tuple[list[list[int]], list[list[int]], list[dict[int, int]]]:
    """Sentences of 30 words, their translations word for word in another order, and the true links.

    Two neighbours change places now and then, and a word that means nothing is put in.
    """
    random = np.random.default_rng(seed)
    meaning = random.permutation(30)
    one, other, links = [], [], []
    for _ in range(sentences):
        words = random.choice(30, random.integers(2, 9), replace=False)
        order = np.arange(len(words))
        if len(words) > 2 and random.random() < 0.5:
            place = random.integers(len(words) - 1)
            order[[place, place + 1]] = order[[place + 1, place]]
        translated = [int(meaning[words[i]]) for i in order]
        true = {int(i): j for j, i in enumerate(order)}
        if random.random() < 0.3:
            place = int(random.integers(len(translated) + 1))
            translated.insert(place, 30)
            true = {i: j + (j >= place) for i, j in true.items()}
        one.append(words.tolist())
        other.append(translated)
        links.append(true)
    return one, other, links


def test_it_finds_the_links_of_a_made_language() -> None:
    one, other, true = made_bitext(1)
    steps: list[int] = []
    found = aligned(Sentences.of(one), Sentences.of(other), steps.append)
    right = sum((t.get(i) == j) for t, links in zip(true, found, strict=True) for i, j in links.tolist())
    assert right / sum(map(len, found)) > 0.97 and right / sum(map(len, true)) > 0.99
    assert sum(steps) == PASSES * len(one)


def plain_best(one: list[list[int]], other: list[list[int]]) -> list[int]:
    """The same model in plain loops, its tension held."""
    pairs = list(zip(one, other, strict=True))
    null = -1
    t: dict[tuple[int, int], float] = {}
    for source, target in pairs:
        for f in target:
            t.update({(e, f): 1.0 / (1 + max(w for s in other for w in s)) for e in [null, *source]})

    def posterior(source: list[int], target: list[int], j: int) -> list[float]:
        h = [np.exp(-FIRST_TENSION * abs(i / len(source) - j / len(target))) for i in range(len(source))]
        weights = [(1 - NULL_CHANCE) * h[i] / sum(h) * t[e, target[j]] for i, e in enumerate(source)]
        return [NULL_CHANCE * t[null, target[j]], *weights]

    for _ in range(ITERATIONS):
        counts = dict.fromkeys(t, 0.0)
        for source, target in pairs:
            for j, f in enumerate(target):
                weights = posterior(source, target, j)
                for e, weight in zip([null, *source], weights, strict=True):
                    counts[e, f] += weight / sum(weights)
        for e in {e for e, _ in t}:
            row = [f for (d, f) in t if d == e]
            total = digamma(sum(counts[e, f] for f in row) + PRIOR * len(row))
            t.update({(e, f): float(np.exp(digamma(counts[e, f] + PRIOR) - total)) for f in row})
    found = []
    for source, target in pairs:
        for j in range(len(target)):
            weights = posterior(source, target, j)
            found.append(int(np.argmax(weights)) - 1)
    return found


@pytest.mark.parametrize("cells", [1, 40, 1 << 21])
def test_it_equals_the_model_in_plain_loops_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    monkeypatch.setattr(word_alignment, "_CELLS", cells)
    monkeypatch.setattr(word_alignment, "_tension", lambda *_: FIRST_TENSION)
    one, other, _ = made_bitext(2, 25)
    assert best_sources(Sentences.of(one), Sentences.of(other)).tolist() == plain_best(one, other)


def test_empty_sentences_have_no_links_and_harm_nobody() -> None:
    one, other, _ = made_bitext(3, 40)
    alone = aligned(Sentences.of(one), Sentences.of(other))
    found = aligned(Sentences.of([[], *one, [4]]), Sentences.of([[5, 6], *other, []]))
    assert [len(links) for links in (found[0], found[-1])] == [0, 0]
    same = sum(np.array_equal(a, b) for a, b in zip(alone, found[1:-1], strict=True))
    assert same >= 38  # the two change the counts a little
    assert aligned(Sentences.of([]), Sentences.of([])) == []


def test_the_tension_grows_where_words_keep_their_order_and_falls_where_they_do_not() -> None:
    sides = Sentences.of([[0] * 8] * 50)
    assert word_alignment._tension(sides, sides, 4.0, 0.02) > 4.0
    assert word_alignment._tension(sides, sides, 4.0, 0.3) < 4.0


@pytest.mark.parametrize(
    ("of_one", "of_other", "links"),
    [
        ([0, 1], [0, 1], [(0, 0), (1, 1)]),
        ([0, 0], [0, -1], [(0, 0), (1, 0)]),  # a neighbour of a common link
        ([0, -1, 2], [0, -1, -1], [(0, 0), (2, 2)]),  # both words were without
        ([0, -1, 0], [0], [(0, 0)]),  # no neighbour, and the other word has a link already
        ([-1, -1], [-1], []),
    ],
)
def test_links_of_both_directions_grow_from_those_that_agree(
    of_one: list[int], of_other: list[int], links: list[tuple[int, int]]
) -> None:
    found = symmetrised(np.array(of_one), np.array(of_other))
    assert [tuple(link) for link in found.tolist()] == links


def test_phrases_are_those_between_which_all_links_run() -> None:
    random = np.random.default_rng(4)
    for _ in range(60):
        n, m = random.integers(1, 7, 2)
        cells = [(i, j) for i in range(n) for j in range(m) if random.random() < 0.25]
        links = np.array(cells, dtype=np.int64).reshape(-1, 2)
        expected = set()
        for a, b in combinations(range(n + 1), 2):
            for c, d in combinations(range(m + 1), 2):
                inside = [(i, j) for i, j in cells if a <= i < b and c <= j < d]
                touching = [(i, j) for i, j in cells if a <= i < b or c <= j < d]
                edges = {i for i, _ in inside} >= {a, b - 1} and {j for _, j in inside} >= {c, d - 1}
                if inside and inside == touching and edges and b - a <= 3 and d - c <= 4:
                    expected.add((a, b, c, d))
        assert set(consistent_phrases(links, (int(n), int(m)), (3, 4))) == expected
