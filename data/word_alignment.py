"""Word alignment of translations: which word of one sentence stands for which of the other.

    sentence pairs ──▶ IBM model 1 with a diagonal prior, EM, both directions ──▶ best links ──▶ symmetrised

The model of fast_align (Dyer, Chahuneau and Smith, 2013, "A simple, fast, and effective reparameterization of IBM
Model 2"): a word f at place j of n comes from no word with p0, else from the word e at place i of m with

    (1 - p0) * exp(-tension * |i/m - j/n|) / Z_j * t(f | e)

t is re-estimated with a sparse Dirichlet prior (variational Bayes), the tension by gradient. Everything is sums over
cells (i, j) of sentence pairs in numpy, a block of pairs at a time.
Systran's build of fast_align has wheels for one platform only, eflomal none, and NLTK's models are plain Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import digamma

NULL_CHANCE = 0.08  # p0 of fast_align
PRIOR = 0.01  # Dirichlet prior of t(. | e): few translations a word
FIRST_TENSION = 4.0
ITERATIONS = 5
_TENSIONS = 0.1, 14.0  # bounds
_TENSION_STEPS, _TENSION_RATE = 8, 20.0
_CELLS = 1 << 21  # cells of a block


class Sentences(NamedTuple):
    """One side of a bitext: word numbers of all sentences end to end."""

    words: np.ndarray  # (total,) int32
    starts: np.ndarray  # (sentences + 1,) int64

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]]) -> Sentences:
        """Lay sentences end to end."""
        lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        words = np.fromiter((w for sentence in sentences for w in sentence), np.int32, int(lengths.sum()))
        return cls(words, np.concatenate([[0], np.cumsum(lengths)]))


def aligned(
    one: Sentences, other: Sentences, advance: Callable[[int], None] = lambda pairs: None
) -> list[np.ndarray]:
    """For each pair of sentences the links (k, 2) of places in ``one`` and ``other``, symmetrised.

    ``advance`` is told the sentence pairs done, each of them PASSES times.
    """
    forward = best_sources(other, one, advance)  # for each word of one, a place in other or -1
    backward = best_sources(one, other, advance)
    links = []
    for k in range(len(one.starts) - 1):
        of_one = forward[one.starts[k] : one.starts[k + 1]]
        of_other = backward[other.starts[k] : other.starts[k + 1]]
        links.append(symmetrised(of_one, of_other))
    return links


PASSES = 2 * (ITERATIONS + 1)


class _Block(NamedTuple):
    """The cells of some sentence pairs, ordered by target word; a cell is a target word and a source word."""

    target: np.ndarray  # (C,) int64, numbers of target words in the corpus
    source: np.ndarray  # (C,) place in the source sentence
    pairs: np.ndarray  # (C,) source word * targets + target word
    distance: np.ndarray  # (C,) |i/m - j/n|
    first: np.ndarray  # (c,) first cell of each target word
    words: np.ndarray  # (c,) numbers of these target words


def best_sources(
    source: Sentences, target: Sentences, advance: Callable[[int], None] = lambda pairs: None
) -> np.ndarray:
    """For every target word the place of its best source word in its sentence, -1 for none (total,)."""
    sources, targets = (int(side.words.max(initial=-1)) + 1 for side in (source, target))
    null = sources  # the source word that stands for no word
    blocks = _blocks(source, target)
    known, numbers = _known_pairs(source, target, blocks, targets, null)
    owner = known // targets  # the source word of each pair
    scores = np.full(len(known), 1.0 / max(targets, 1))
    tension = FIRST_TENSION
    best = np.full(len(target.words), -1, dtype=np.int64)
    null_of = np.searchsorted(known, null * targets + np.arange(targets, dtype=np.int64))
    for iteration in range(ITERATIONS + 1):
        counts = np.zeros(len(known))
        observed = total = 0.0
        for (begin, end), of_block in zip(blocks, numbers, strict=True):
            block = _block(source, target, begin, end, targets)
            cells = scores[of_block]
            nulls = null_of[target.words[block.words]]
            prior = np.exp(-tension * block.distance)
            repeats = np.diff(np.append(block.first, len(block.pairs)))
            prior *= np.repeat((1 - NULL_CHANCE) / np.add.reduceat(prior, block.first), repeats)
            cells = prior * cells
            without = NULL_CHANCE * scores[nulls]
            if iteration == ITERATIONS:
                best[block.words] = _best(block, cells, without, repeats)
            else:
                sums = np.add.reduceat(cells, block.first) + without
                cells /= np.repeat(sums, repeats)
                counts += np.bincount(of_block, cells, len(known))
                counts += np.bincount(nulls, without / sums, len(known))
                observed += float(cells @ block.distance)
                total += float(cells.sum())
            advance(end - begin)
        if iteration < ITERATIONS:
            mass = np.bincount(owner, counts, sources + 1)
            held = np.bincount(owner, minlength=sources + 1)
            scores = np.exp(digamma(counts + PRIOR) - digamma(mass + PRIOR * held)[owner])
            if iteration and total:
                tension = _tension(source, target, tension, observed / total)
    return best


def symmetrised(of_one: np.ndarray, of_other: np.ndarray) -> np.ndarray:
    """The links (k, 2) of both directions as one: grow-diag-final-and (Koehn et al., 2003).

    Links that both directions have; then neighbours of links that one direction has, where a word is still
    without; then links of one direction between words that are both without.

    Args:
        of_one: (n,) for each word of the first sentence its place in the second, -1 for none.
        of_other: (m,) the reverse.

    """
    forward = {(i, int(j)) for i, j in enumerate(of_one) if j >= 0}
    backward = {(int(i), j) for j, i in enumerate(of_other) if i >= 0}
    links, either = forward & backward, forward | backward
    left, right = {i for i, _ in links}, {j for _, j in links}

    def add(i: int, j: int) -> None:
        links.add((i, j))
        left.add(i)
        right.add(j)

    grown = sorted(links)
    while grown:
        i, j = grown.pop(0)
        for a, b in _NEIGHBOURS:
            near = i + a, j + b
            if near in either and near not in links and not (near[0] in left and near[1] in right):
                add(*near)
                grown.append(near)
    for direction in (forward, backward):
        for i, j in sorted(direction - links):
            if i not in left and j not in right:
                add(i, j)
    return np.array(sorted(links), dtype=np.int64).reshape(-1, 2)


_NEIGHBOURS = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]


def consistent_phrases(
    links: np.ndarray, lengths: tuple[int, int], longest: tuple[int, int]
) -> Iterator[tuple[int, int, int, int]]:
    """Pairs of phrases between which all links run, as (start, end, start, end), ends excluded.

    Every phrase of the first sentence of at most ``longest[0]`` words, with the tightest phrase of the other
    sentence that holds all its links, if no link of that one leads elsewhere (Och and Ney, 2004). Unlinked words
    at the edges belong to no phrase.

    Args:
        links: (k, 2) places.
        lengths: words of both sentences.
        longest: words of the longest phrase on both sides.

    """
    by_first: list[list[int]] = [[] for _ in range(lengths[0])]
    by_second: list[list[int]] = [[] for _ in range(lengths[1])]
    for i, j in links.tolist():
        by_first[i].append(j)
        by_second[j].append(i)
    for start in range(lengths[0]):
        if not by_first[start]:
            continue
        low, high = lengths[1], -1
        for end in range(start, min(start + longest[0], lengths[0])):
            if not by_first[end]:
                continue
            low, high = min(low, *by_first[end]), max(high, *by_first[end])
            if high - low >= longest[1]:
                break
            if all(start <= i <= end for j in range(low, high + 1) for i in by_second[j]):
                yield start, end + 1, low, high + 1


def _blocks(source: Sentences, target: Sentences) -> list[tuple[int, int]]:
    """Runs of sentence pairs of about _CELLS cells."""
    cells = np.cumsum(np.diff(source.starts) * np.diff(target.starts))
    blocks, begin = [], 0
    while begin < len(cells):
        before = cells[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(cells, before + _CELLS, side="right")))
        blocks.append((begin, end))
        begin = end
    return blocks


def _block(source: Sentences, target: Sentences, begin: int, end: int, targets: int) -> _Block:
    m = np.diff(source.starts[begin : end + 1])
    n = np.diff(target.starts[begin : end + 1])
    n_used = np.where(m > 0, n, 0)  # a word without any source word has no cell
    words = np.concatenate(
        [np.arange(s, s + k) for s, k in zip(target.starts[begin:end], n_used, strict=True)]
        or [np.zeros(0, np.int64)]
    )
    sentence = np.repeat(np.arange(end - begin), n_used)
    sizes = m[sentence]
    first = np.cumsum(sizes) - sizes
    cell_word = np.repeat(np.arange(len(words)), sizes)
    place = np.arange(int(sizes.sum())) - first[cell_word]
    of = sentence[cell_word]
    target_words = words[cell_word]
    source_words = source.words[source.starts[begin + of] + place].astype(np.int64)
    relative = (target_words - target.starts[begin + of]) / n[of]
    return _Block(
        target_words,
        place,
        source_words * targets + target.words[target_words],
        np.abs(place / m[of] - relative),
        first,
        words,
    )


def _known_pairs(
    source: Sentences, target: Sentences, blocks: Sequence[tuple[int, int]], targets: int, null: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The pairs of words that stand in some sentence pair together, ascending, those with no word among them.

    And for every cell of every block the number (C,) int32 of its pair: sorting is done once.
    """
    found = [np.unique(target.words).astype(np.int64) + null * targets]
    of_blocks = [
        np.unique(_block(source, target, begin, end, targets).pairs, return_inverse=True)
        for begin, end in blocks
    ]
    found += [pairs for pairs, _ in of_blocks]
    known = np.unique(np.concatenate(found))
    numbers = [np.searchsorted(known, pairs).astype(np.int32)[inverse] for pairs, inverse in of_blocks]
    return known, numbers


def _best(block: _Block, cells: np.ndarray, without: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """The place of the best cell of each target word, -1 where none beats the chance of no word."""
    if not len(cells):
        return np.zeros(0, np.int64)
    highest = np.maximum.reduceat(cells, block.first)
    is_best = cells == np.repeat(highest, repeats)
    places = np.where(is_best, block.source, np.iinfo(np.int64).max)
    best = np.minimum.reduceat(places, block.first)
    return np.where(highest > without, best, -1)


def _tension(source: Sentences, target: Sentences, tension: float, observed: float) -> float:
    """The tension at which the prior expects the distance that was observed, a few steps towards it."""
    sizes = np.stack([np.diff(source.starts), np.diff(target.starts)], 1)
    sizes, counts = np.unique(sizes[(sizes > 0).all(1)], axis=0, return_counts=True)
    grids = [np.abs(np.arange(m)[None, :] / m - np.arange(n)[:, None] / n) for m, n in sizes.tolist()]
    weights = counts * sizes[:, 1]
    for _ in range(_TENSION_STEPS):
        expected = 0.0
        for grid, count in zip(grids, counts, strict=True):
            prior = np.exp(-tension * grid)
            expected += count * float(((prior * grid).sum(1) / prior.sum(1)).sum())
        expected /= float(weights.sum())
        tension = float(np.clip(tension + _TENSION_RATE * (expected - observed), *_TENSIONS))
    return tension
