"""Alignment objective: documents that mean the same are drawn together, against all pairs of the pool.

Here the pool is one microbatch of every rank; objectives/alignment_pool.py is for steps of several.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from data.batch import PackedBatch
from kernels.alignment import alignment_loss
from model.pretraining import PretrainingOutput
from objectives.report import LossReport, report_by_stream


class Alignment(NamedTuple):
    """The alignment loss of this rank's pairs."""

    total: Tensor  # () weighted sum, differentiable; summed over ranks it is the loss of the step
    report: LossReport  # unweighted, detached


class Comparison(NamedTuple):
    """How the similarities of a pool become a loss."""

    additive_margin: float = 0.0  # taken from the cosine of a pair
    widths: tuple[int, ...] = ()  # prefixes of the vectors that are losses too; the whole vector always is

    def prefixes(self, width: int) -> list[tuple[int, float]] | None:
        """Return the prefixes and weights of their losses, whose mean is the loss, for vectors of ``width``."""
        if not self.widths:
            return None
        every = sorted({*self.widths, width})
        return [(prefix, 1 / len(every)) for prefix in every]


class Pairs(NamedTuple):
    """P pairs of documents and H further negatives, the columns of a batch that compare."""

    documents: Tensor  # (P, 2) rows of the sentence vectors
    groups: Tensor  # (P,) pairs of one group are never each other's negatives
    stream: Tensor  # (P,)
    negatives: Tensor  # (H,) rows of the sentence vectors that every pair's first text is compared with too
    negative_groups: Tensor  # (H,)


def pairs_of(batch: PackedBatch) -> Pairs:
    """Return the pairs of ``batch``."""
    return Pairs(batch.pairs, batch.pair_groups, batch.pair_stream, batch.negatives, batch.negative_groups)


def sentence_alignment(
    output: PretrainingOutput,
    batch: PackedBatch,
    weights: Tensor,
    *,
    comparison: Comparison = Comparison(),  # noqa: B008  # a tuple: nothing in it changes
    ranks: ProcessGroup | None = None,
    implementation: str = "auto",
) -> Alignment:
    """Return the alignment loss of this microbatch's pairs in the pool of this microbatch of all ``ranks``.

    ``weights`` (S,) per stream: task weight / number of the task's terms in the step. The loss of a microbatch is
    ``output.prediction_total + alignment.total``.
    Every rank must call. The gradient is this rank's part of the gradient of the sum over ranks, no mean.
    """
    return align(
        output.sentence_vectors,
        output.inverse_temperature,
        pairs_of(batch),
        weights,
        comparison=comparison,
        ranks=ranks,
        implementation=implementation,
    )


def align(
    vectors: Tensor,
    inverse_temperature: Tensor,
    pairs: Pairs,
    weights: Tensor,
    *,
    comparison: Comparison,
    ranks: ProcessGroup | None,
    implementation: str,
) -> Alignment:
    """Return the alignment loss of ``pairs`` of unit ``vectors`` (documents, E); see sentence_alignment."""
    positives = torch.arange(len(pairs.documents), device=vectors.device)
    loss = alignment_loss(
        vectors.index_select(0, pairs.documents[:, 0]),
        vectors.index_select(0, torch.cat([pairs.documents[:, 1], pairs.negatives])),
        positives,
        inverse_temperature,
        query_groups=pairs.groups,
        key_groups=torch.cat([pairs.groups, pairs.negative_groups]),
        weights=weights[pairs.stream],
        additive_margin=comparison.additive_margin,
        widths=comparison.prefixes(vectors.shape[1]),
        ranks=ranks,
        implementation=implementation,
    )
    losses = (loss.rows + loss.columns) / 2
    return Alignment(loss.total, report_by_stream(losses, loss.correct, pairs.stream, len(weights)))
