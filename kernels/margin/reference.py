"""The margin losses as dense torch and plain autograd: the definition that the others are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels.margin.form import GapSums, MarginForm, MarginLoss, gap_sums
from kernels.margin.pool import Pool, gather_pool


def explicit(
    anchors: Tensor,
    positives: Tensor,
    vectors: Tensor,
    negatives: Tensor,
    teacher_gaps: Tensor,
    form: MarginForm,
    weights: Tensor,
) -> MarginLoss:
    """See ``kernels.margin.adaptive_margin_loss``; holds the (Q, K, E) vectors of the negatives."""
    wide = torch.promote_types(anchors.dtype, torch.float32)
    present = negatives >= 0
    # -1 names the row of zeros at the end, which is masked out below.
    padded = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])]).to(wide)
    of_negative = (anchors.to(wide)[:, None] * padded[negatives]).sum(2)  # (Q, K)
    of_positive = (anchors.to(wide) * positives.to(wide)).sum(1)
    gaps = of_positive[:, None] - of_negative
    rows, correct, sums = _rows(gaps, teacher_gaps.to(wide), present, form)
    return MarginLoss((weights.to(wide) * rows).sum(), rows.detach(), correct, GapSums(*sums))


def in_batch(
    anchors: Tensor,
    positives: Tensor,
    teacher_anchors: Tensor,
    teacher_positives: Tensor,
    groups: Tensor,
    form: MarginForm,
    weights: Tensor,
    ranks: ProcessGroup | None,
) -> MarginLoss:
    """See ``kernels.margin.in_batch_margin_loss``; holds the (R, R) similarities several times over.

    With ranks, the gathered pool is constant except for this rank's own vectors: the loss of the whole pool gives
    them their complete gradient.
    """
    pool = gather_pool(anchors, positives, teacher_anchors, teacher_positives, groups, weights, ranks)
    own = pool.own
    with_own_anchors = torch.cat([pool.anchors[: own.start], anchors, pool.anchors[own.stop :]])
    with_own_positives = torch.cat([pool.positives[: own.start], positives, pool.positives[own.stop :]])
    gaps, teacher_gaps, negative = _gaps(with_own_anchors, with_own_positives, pool)
    rows, correct, _ = _rows(gaps, teacher_gaps, negative, form)
    weighted = pool.weights.to(rows.dtype) * rows
    whole = weighted.sum()
    total = weighted.detach()[own].sum() + (whole - whole.detach())
    _, _, sums = _rows(gaps.detach()[own], teacher_gaps[own], negative[own], form)
    return MarginLoss(total, rows[own].detach(), correct[own], GapSums(*sums))


def _gaps(anchors: Tensor, positives: Tensor, pool: Pool) -> tuple[Tensor, Tensor, Tensor]:
    """Student's gaps, teacher's gaps and which of them count, each (R, R): row i against the positive of row j."""
    wide = torch.promote_types(anchors.dtype, torch.float32)
    student = anchors.to(wide) @ positives.to(wide).T
    teacher = pool.teacher_anchors.to(wide) @ pool.teacher_positives.to(wide).T
    negative = pool.groups[:, None] != pool.groups[None, :]
    return (
        student.diagonal()[:, None] - student,
        teacher.diagonal()[:, None] - teacher,
        negative,
    )


def _rows(
    gaps: Tensor, teacher_gaps: Tensor, counts: Tensor, form: MarginForm
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss of each row over the entries that count, whether none of them is negative, and the sums (6,)."""
    missing = form.target(teacher_gaps) - gaps
    losses = form.loss(missing).masked_fill(~counts, 0.0)
    rows = losses.sum(1) / counts.sum(1).clamp_min(1)
    correct = ~((gaps < 0) & counts).any(1)
    return rows, correct, gap_sums(gaps.detach(), teacher_gaps, missing.detach(), counts)
