"""Bitext retrieval accuracy@1: the mathematics alone, on arrays, whoever made the vectors.

For a language pair (a, b) every row that exists in both languages is one query: its vector in language a is
compared, by cosine, with the candidates in language b. The candidates are ALL rows of language b that were
given, also those without a text in language a, and, if given, ``distractors``: further rows of language b
that answer no query (the training rows, say: "300 held-out queries against 2,600 rows").

The figure errs on the strict side, so that a degenerate encoder can not score by luck:

- **ties** are lost: a query counts only if the right candidate is nearer than every wrong one by more than
  ``TIE``. Vectors that are all equal score 0, and so do vectors that are not finite;
- **duplicates** are right: a candidate whose TEXT is identical to the right answer's is as right as the
  answer (short interface texts such as "Cancel" occur in several rows, and nothing can tell them apart).

The measure is the accuracy of Tatoeba-style retrieval in LASER (Artetxe and Schwenk, 2019) and XTREME (Hu
et al., 2020): nearest neighbour by cosine, no margin, no hubness correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np

TIE = 1e-9  # in cosine; float64 products of equal vectors differ by some 1e-16, of float32 data too
QUERIES_AT_ONCE = 1024  # bounds the memory of a block of similarities


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """(len(texts),) uint64, equal exactly where the texts are equal (64 bits of BLAKE2b)."""
    digests = [blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


@dataclass(frozen=True, slots=True)
class LanguageRows:
    """The texts of one language as vectors.

    ``rows`` (R,) are the numbers of the multi-way rows the texts belong to, each at most once; ``vectors``
    (R, E) any float array, tensor or scipy sparse matrix; ``keys`` (R,) from :func:`text_keys`, or None if
    no text occurs twice.
    """

    rows: np.ndarray
    vectors: Any
    keys: np.ndarray | None = None


def joined(parts: Sequence[LanguageRows]) -> LanguageRows:
    """Several sets of texts of one language as one set of candidates, in order; the rows are numbered anew.

    Dense and sparse vectors alike, but not mixed. ValueError if some have keys and others have none.
    """
    keys = [part.keys for part in parts if part.keys is not None]
    if keys and len(keys) != len(parts):
        raise ValueError("text keys are needed for all sets of texts, or for none")
    vectors = [_array(part.vectors) for part in parts]
    if all(isinstance(v, np.ndarray) for v in vectors):
        stacked = np.concatenate(vectors)
    else:
        from scipy.sparse import vstack  # only the floor of 3-grams is sparse

        stacked = vstack(vectors, format="csr")
    return LanguageRows(np.arange(stacked.shape[0]), stacked, np.concatenate(keys) if keys else None)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """accuracy[a, b]: share of a's texts whose nearest text in b is their translation; queries: how many."""

    accuracy: dict[tuple[str, str], float]
    queries: dict[tuple[str, str], int]
    pivot: str

    @property
    def languages(self) -> list[str]:
        """The languages that were compared with the pivot."""
        return sorted({a for a, b in self.accuracy if b == self.pivot})

    def of_language(self, language: str) -> float:
        """Mean of both directions between ``language`` and the pivot."""
        return (self.accuracy[language, self.pivot] + self.accuracy[self.pivot, language]) / 2

    @property
    def mean(self) -> float:
        """THE figure: mean over the languages, and over both directions, with the pivot; nan without any."""
        return _mean([self.of_language(language) for language in self.languages])

    @property
    def mean_of_others(self) -> float:
        """Mean over the sampled pairs in which the pivot has no part; nan without any."""
        return _mean([value for pair, value in self.accuracy.items() if self.pivot not in pair])

    def scalars(self, name: str) -> dict[str, float]:
        """For telemetry: ``retrieval/NAME/mean``, ``mean_of_others``, ``language/a`` (both ways), ``a-b``."""
        scalars = {"mean": self.mean}
        if any(self.pivot not in pair for pair in self.accuracy):
            scalars["mean_of_others"] = self.mean_of_others
        scalars |= {f"language/{language}": self.of_language(language) for language in self.languages}
        scalars |= {f"{a}-{b}": value for (a, b), value in self.accuracy.items()}
        return {f"retrieval/{name}/{key}": value for key, value in scalars.items()}


def retrieval_accuracy(
    queries: Any,
    candidates: Any,
    answers: np.ndarray,
    candidate_keys: np.ndarray | None = None,
) -> float:
    """Share of the queries whose nearest candidate is the right one; nan if there are no queries.

    ``queries`` (Q, E), ``candidates`` (C, E): arrays, tensors or scipy sparse matrices, of any lengths
    (they are normalised here); ``answers`` (Q,) index of the right candidate of each query;
    ``candidate_keys`` (C,): candidates with equal keys are equally right. Ties are lost.
    """
    q, c = _unit_rows(queries), _unit_rows(candidates)
    answers = np.asarray(answers)
    if len(answers) != q.shape[0] or (len(answers) and not 0 <= answers.min() <= answers.max() < c.shape[0]):
        raise ValueError(
            f"{len(answers)} answers in [0, {c.shape[0]}) needed, one for each of {q.shape[0]} queries"
        )
    if not len(answers):
        return float("nan")
    correct = 0
    for start in range(0, len(answers), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        similarities = q[block] @ c.T
        if not isinstance(similarities, np.ndarray):
            similarities = similarities.toarray()
        if candidate_keys is None:
            right = np.arange(c.shape[0]) == answers[block, None]  # (q, C)
        else:
            right = candidate_keys == candidate_keys[answers[block]][:, None]
        best_right = np.where(right, similarities, -np.inf).max(axis=1)
        best_wrong = np.where(right, -np.inf, similarities).max(axis=1)
        correct += int((best_right > best_wrong + TIE).sum())  # nan compares false: lost
    return correct / len(answers)


def bitext_retrieval(
    texts: Mapping[str, LanguageRows],
    *,
    distractors: Mapping[str, LanguageRows] | None = None,
    pivot: str = "en",
    other_pairs: int = 0,
    seed: int = 0,
) -> Retrieval:
    """Accuracy, in both directions, of every language with ``pivot`` and of ``other_pairs`` pairs without.

    Pairs of languages that share no row are left out. The draw depends on ``seed`` and on the languages
    alone. ``distractors`` join the candidates of their language; the row numbers in them are not looked at.
    """
    languages = sorted(language for language in texts if language != pivot)
    pairs = [(language, pivot) for language in languages if pivot in texts]
    others = list(combinations(languages, 2))
    drawn = np.random.default_rng(seed).permutation(len(others))[:other_pairs]
    pairs += [others[i] for i in sorted(drawn)]
    accuracy, queries = {}, {}
    for pair in pairs:
        for a, b in (pair, pair[::-1]):
            shared, query_index, answers = np.intersect1d(
                texts[a].rows, texts[b].rows, assume_unique=True, return_indices=True
            )
            if not len(shared):
                continue
            candidates, keys = _with_distractors(texts[b], distractors.get(b) if distractors else None)
            accuracy[a, b] = retrieval_accuracy(
                _rows(texts[a].vectors, query_index), candidates, answers, keys
            )
            queries[a, b] = len(shared)
    return Retrieval(accuracy, queries, pivot)


def _with_distractors(texts: LanguageRows, more: LanguageRows | None) -> tuple[Any, np.ndarray | None]:
    if more is None:
        return texts.vectors, texts.keys
    together = joined([texts, more])
    return together.vectors, together.keys


def _array(vectors: Any) -> Any:
    """A tensor as an array; arrays and sparse matrices as they are."""
    return vectors.detach().cpu().double().numpy() if hasattr(vectors, "detach") else vectors


def _rows(vectors: Any, index: np.ndarray) -> Any:
    return _array(vectors)[index]


def _unit_rows(vectors: Any) -> Any:
    """float64 rows of length 1; a row of zeros stays zero and is similar to nothing."""
    vectors = _array(vectors)
    if isinstance(vectors, np.ndarray):
        vectors = vectors.astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths == 0, 1, lengths)
    from scipy.sparse import diags

    vectors = vectors.astype(np.float64).tocsr()
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
    return diags(1 / np.where(lengths == 0, 1, lengths)) @ vectors


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
