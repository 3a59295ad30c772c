"""Two floors under the encoder, from the same text: retrieval without any understanding of a sentence.

(i)  Character 3-grams: no training. Cosine of log-scaled, IDF-weighted counts of the 3-grams that two texts
     share. It finds what is spelt alike: names, numbers, placeholders, cognates. (ii) Token means: one
     vector per token of the encoder's own vocabulary and their plain mean, no layer and no word order,
     trained contrastively on the pairs that the encoder is trained on. It is a strong floor in its own
     domain: retrieval there alone proves little about an encoder.

Both take plain lists and arrays. An encoder that does not beat them has learned a dictionary at best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from kernels.alignment import alignment_loss

NGRAM = 3
NGRAM_BUCKETS = 1 << 20
# Odd 32-bit multipliers, so that the three places of a 3-gram are told apart.
PLACE_MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], dtype=np.uint64)


def ngram_counts(texts: Sequence[str]) -> csr_matrix:
    """(len(texts), NGRAM_BUCKETS) counts of hashed character 3-grams of case-folded, padded words.

    The hash is a fixed one: the same text has the same buckets in every process.
    """
    rows, columns = [], []
    for number, text in enumerate(texts):
        spaced = f" {' '.join(text.casefold().split())} "
        codes = np.frombuffer(spaced.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
        if len(codes) < NGRAM:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(codes, NGRAM)
        hashed = ((windows * PLACE_MULTIPLIERS).sum(axis=1) * PLACE_MULTIPLIERS[0]) >> np.uint64(20)
        columns.append((hashed % NGRAM_BUCKETS).astype(np.int64))
        rows.append(np.full(len(hashed), number))
    if not rows:
        return csr_matrix((len(texts), NGRAM_BUCKETS))
    row, column = np.concatenate(rows), np.concatenate(columns)
    # csr_matrix adds up entries that fall on the same place
    return csr_matrix((np.ones(len(row)), (row, column)), shape=(len(texts), NGRAM_BUCKETS))


def inverse_document_frequency(counts: csr_matrix) -> np.ndarray:
    """(columns,) log((1 + texts) / (1 + texts that hold the 3-gram)) + 1: the smoothed form, never zero."""
    held_by = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.log((1 + counts.shape[0]) / (1 + held_by)) + 1


def ngram_vectors(counts: csr_matrix, frequency: np.ndarray) -> csr_matrix:
    """Rows to compare by cosine: log(1 + count) x IDF."""
    return counts.log1p().multiply(frequency).tocsr()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMeanSettings:
    """How the token means are trained; defaults tuned on the demo's corpora, in the floor's favour."""

    vocabulary_size: int
    width: int = 256
    pairs: int = 1024  # of one batch; never two from one row, fewer if there are fewer rows
    learning_rate: float = 1e-2  # Adam, falls linearly to zero
    temperature: float = 0.05
    initializer_std: float = 0.02
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """Multi-way rows as flat arrays, S texts: what the floor is trained on.

    ``ids[s]`` token ids without specials; ``rows`` (S,) the row of each text, the texts of a row stand
    together; ``groups`` (S,): texts of rows with equal groups are never each other's negatives.
    """

    ids: Sequence[np.ndarray]
    rows: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True, slots=True)
class TrainedTokenMeans:
    """The trained table (V, E) float32 and what its training took."""

    table: Tensor
    steps: int
    seconds: float
    loss: float

    def vectors(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """(len(ids), E) means of token vectors, not normalised; a text without tokens is all zeros."""
        with torch.no_grad():
            return _means(self.table, *_flat(ids)).numpy()


def train_token_means(
    texts: TrainingTexts,
    settings: TokenMeanSettings,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> TrainedTokenMeans:
    """Train for ``seconds`` of wall time or for a number of ``steps``; give one of the two.

    With ``steps`` the result is a function of the arguments (on one machine with one number of threads);
    with ``seconds`` the learning rate follows the clock. A batch holds one pair from each of ``pairs`` rows
    drawn without replacement, in two different languages drawn uniformly; the loss is the alignment loss of
    the encoder. ``progress`` is called after each step with its number and its loss.
    """
    if (seconds is None) == (steps is None):
        raise ValueError("give either seconds or steps")
    starts = _starts(texts.rows)
    usable = np.flatnonzero(np.diff(starts) >= 2)
    if not len(usable):
        raise ValueError("no row has two texts: there is no pair to train on")
    draw = np.random.default_rng(settings.seed)
    table = torch.empty(settings.vocabulary_size, settings.width)
    table.normal_(0, settings.initializer_std, generator=torch.Generator().manual_seed(settings.seed))
    table.requires_grad_()
    adam = torch.optim.Adam([table], lr=settings.learning_rate, fused=True)
    inverse_temperature = torch.tensor(1 / settings.temperature)
    began, step, value, order = time.monotonic(), 0, float("nan"), usable[:0]
    while True:
        elapsed = time.monotonic() - began
        done = elapsed / seconds if seconds is not None else step / (steps or 1)
        if done >= 1:
            return TrainedTokenMeans(table.detach(), step, elapsed, value)
        if len(order) < min(settings.pairs, len(usable)):
            order = draw.permutation(usable)
        rows, order = order[: settings.pairs], order[settings.pairs :]
        first, second = _two_of_each(starts[rows], starts[rows + 1], draw)
        both = np.concatenate([first, second])
        vectors = F.normalize(_means(table, *_flat([texts.ids[s] for s in both])), dim=1)
        groups = torch.from_numpy(texts.groups[first].astype(np.int64))
        loss = alignment_loss(
            vectors[: len(rows)],
            vectors[len(rows) :],
            torch.arange(len(rows)),
            inverse_temperature,
            query_groups=groups,
            key_groups=groups,
            weights=torch.full((len(rows),), 1 / len(rows)),
        ).total
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = settings.learning_rate * (1 - done)
        adam.step()
        step, value = step + 1, loss.item()
        if progress is not None:
            progress(step, value)


def _starts(rows: np.ndarray) -> np.ndarray:
    """(R + 1,) where each run of equal row numbers begins, and the end."""
    return np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1, [len(rows)]])


def _two_of_each(
    start: np.ndarray, end: np.ndarray, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two different texts of each run [start, end), uniformly, in either order."""
    length = end - start
    first = draw.integers(0, length)
    second = (first + draw.integers(1, length)) % length
    return start + first, start + second


def _flat(ids: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    lengths = np.array([len(x) for x in ids], dtype=np.int64)
    tokens = np.concatenate([*ids, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    return torch.from_numpy(tokens), torch.from_numpy(np.cumsum(lengths) - lengths)


def _means(table: Tensor, tokens: Tensor, offsets: Tensor) -> Tensor:
    return F.embedding_bag(tokens, table, offsets, mode="mean")
