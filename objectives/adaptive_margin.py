"""Adaptive margin objectives: triplets of a microbatch, and pairs against all other pairs of the pool."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from data.batch import PackedBatch
from kernels.margin import MarginForm, adaptive_margin_loss, in_batch_margin_loss
from model.pretraining import PretrainingOutput
from objectives.alignment import Pairs
from objectives.report import LossReport, report_by_stream


class Margin(NamedTuple):
    """A margin loss of this rank's triplets or pairs."""

    total: Tensor  # () weighted sum, differentiable; summed over ranks it is the loss of the step
    report: LossReport  # unweighted, detached; correct: no negative is closer than the positive
    gaps: Tensor  # (6,) float64, the columns of kernels.margin.GapSums


class InBatch(NamedTuple):
    """How pairs are compared with all other pairs of the pool."""

    form: MarginForm
    weights: Tensor  # (S,) factor of each stream's terms


def triplet_margin(
    output: PretrainingOutput,
    batch: PackedBatch,
    weights: Tensor,
    form: MarginForm,
    *,
    implementation: str = "auto",
) -> Margin:
    """Return the margin loss of this microbatch's triplets; ``weights`` (S,) as in sentence_alignment.

    A triplet is compared within itself, so no other rank is asked.
    """
    vectors = output.sentence_vectors
    loss = adaptive_margin_loss(
        vectors.index_select(0, batch.triplet_anchor),
        vectors.index_select(0, batch.triplet_positive),
        vectors,
        batch.triplet_negatives,
        batch.teacher_gaps,
        form=form,
        weights=weights[batch.triplet_stream],
        implementation=implementation,
    )
    report = report_by_stream(loss.rows, loss.correct, batch.triplet_stream, len(weights))
    return Margin(loss.total, report, torch.stack(loss.gaps))


def pair_margin(
    vectors: Tensor,
    teacher_vectors: Tensor,
    pairs: Pairs,
    how: InBatch,
    *,
    ranks: ProcessGroup | None,
    implementation: str = "auto",
) -> Margin:
    """Return the margin loss of ``pairs`` in the pool of all ``ranks``; every rank must call.

    ``vectors`` (documents, E) are compared as ``teacher_vectors`` (documents, Et) are, which get no gradient. A
    pair with a document that the teacher has not seen (a row of zeros) has no part in it. The first text of a pair is
    the anchor; the tasks draw the order, so that over the steps both directions are learned.
    """
    seen = teacher_vectors.any(1)[pairs.documents].all(1)
    documents, groups, stream = (column[seen] for column in (pairs.documents, pairs.groups, pairs.stream))
    first, second = documents.unbind(1)
    loss = in_batch_margin_loss(
        vectors.index_select(0, first),
        vectors.index_select(0, second),
        teacher_vectors.index_select(0, first),
        teacher_vectors.index_select(0, second),
        groups=groups,
        form=how.form,
        weights=how.weights[stream],
        ranks=ranks,
        implementation=implementation,
    )
    report = report_by_stream(loss.rows, loss.correct, stream, len(how.weights))
    return Margin(loss.total, report, torch.stack(loss.gaps))
