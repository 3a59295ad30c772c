"""The margin losses in tiles, never the whole of the similarities; gradients made in the forward.

With the slope f' = d f / d Ds of an entry, divided by the row's number of negatives and times its weight,

    dDs = w_i f'(Dt, Ds) / n_i
    da_i = sum_j dDs_ij (p_i - n_ij)     dp_i = (sum_j dDs_ij) a_i     dn_ij = -dDs_ij a_i

In the batch n_ij is p_j, and the sum over j is a matrix product with a tile of slopes. One process visits every
tile once and serves both sides from it; with ranks, a rank's anchors need all positives and its positives need all
anchors: two bands of tiles. The teacher's gaps of a tile come from the teacher's vectors, beside the student's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from kernels.margin.form import GapSums, MarginForm, MarginLoss, gap_sums
from kernels.margin.pool import Pool, gather_pool, negatives_of_rows

TILE = 1024  # rows and columns of a tile
ELEMENTS = 1 << 22  # of the negatives' vectors that are held at once


def explicit(
    anchors: Tensor,
    positives: Tensor,
    vectors: Tensor,
    negatives: Tensor,
    teacher_gaps: Tensor,
    form: MarginForm,
    weights: Tensor,
    *,
    elements: int = ELEMENTS,
) -> MarginLoss:
    """See ``kernels.margin.adaptive_margin_loss``; beyond the gradients it holds ``elements`` of negatives."""
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (anchors, positives, vectors))
    total, rows, correct, sums = _Explicit.apply(
        anchors, positives, vectors, negatives, teacher_gaps, form, weights, elements, wanted
    )
    return MarginLoss(total, rows, correct, GapSums(*sums))


def in_batch(
    anchors: Tensor,
    positives: Tensor,
    teacher_anchors: Tensor,
    teacher_positives: Tensor,
    groups: Tensor,
    form: MarginForm,
    weights: Tensor,
    ranks: ProcessGroup | None,
    *,
    tile: int = TILE,
) -> MarginLoss:
    """See ``kernels.margin.in_batch_margin_loss``; beyond the pool and the gradients it holds a few (tile, tile)."""
    wanted = torch.is_grad_enabled() and (anchors.requires_grad or positives.requires_grad)
    total, rows, correct, sums = _InBatch.apply(
        anchors, positives, teacher_anchors, teacher_positives, groups, form, weights, ranks, tile, wanted
    )
    return MarginLoss(total, rows, correct, GapSums(*sums))


class _Explicit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        vectors: Tensor,
        negatives: Tensor,
        teacher_gaps: Tensor,
        form: MarginForm,
        weights: Tensor,
        elements: int,
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(anchors.dtype, torch.float32)
        rows = torch.zeros(len(anchors), dtype=wide, device=anchors.device)
        correct = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        sums = torch.zeros(6, dtype=torch.float64, device=anchors.device)
        gradients = (
            [torch.zeros_like(side, dtype=wide) for side in (anchors, positives, vectors)] if wanted else []
        )
        size = max(1, elements // max(1, negatives.shape[1] * anchors.shape[1]))
        for piece in _pieces(slice(0, len(anchors) if negatives.shape[1] else 0), size):
            numbers, present = negatives[piece].clamp_min(0), negatives[piece] >= 0
            a, p = anchors[piece].to(wide), positives[piece].to(wide)
            n = vectors[numbers].to(wide)  # (q, K, E)
            gaps = (a * p).sum(1, keepdim=True) - (n @ a[:, :, None])[:, :, 0]
            of_teacher = teacher_gaps[piece].to(wide)
            missing = form.target(of_teacher) - gaps
            counts = present.sum(1).clamp_min(1)
            rows[piece] = (form.loss(missing) * present).sum(1) / counts
            correct[piece] = ~((gaps < 0) & present).any(1)
            sums += gap_sums(gaps, of_teacher, missing, present)
            if wanted:
                slopes = form.slope(missing) * present * (weights[piece].to(wide) / counts)[:, None]
                whole = slopes.sum(1, keepdim=True)
                gradients[0][piece] = whole * p - (slopes[:, None, :] @ n)[:, 0]
                gradients[1][piece] = whole * a
                to_negatives = -slopes[:, :, None] * a[:, None, :]
                gradients[2].index_add_(0, numbers.flatten(), to_negatives.flatten(0, 1))
        total = (weights.to(wide) * rows).sum()
        ctx.save_for_backward(*(g.to(anchors.dtype) for g in gradients))
        ctx.mark_non_differentiable(rows, correct, sums)
        return total, rows, correct, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (upstream.to(stored.dtype) * stored for stored in ctx.saved_tensors)
        return (*gradients, None, None, None, None, None, None)


class _InBatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        teacher_anchors: Tensor,
        teacher_positives: Tensor,
        groups: Tensor,
        form: MarginForm,
        weights: Tensor,
        ranks: ProcessGroup | None,
        tile: int,
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(anchors.dtype, torch.float32)
        pool = gather_pool(anchors, positives, teacher_anchors, teacher_positives, groups, weights, ranks)
        negatives = negatives_of_rows(pool.groups)  # (R,)
        factors = pool.weights.to(wide) / negatives.clamp_min(1)
        rows = torch.zeros(len(anchors), dtype=wide, device=anchors.device)
        correct = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        sums = torch.zeros(6, dtype=torch.float64, device=anchors.device)
        of_anchors = torch.zeros_like(anchors, dtype=wide)
        of_positives = torch.zeros_like(positives, dtype=wide)
        first = pool.own.start
        for row_slice, column_slice, for_rows, for_columns in _bands(
            pool, wanted, len(anchors) == len(pool.groups)
        ):
            for r, c, gaps, of_teacher, counts in _tiles(pool, row_slice, column_slice, wide, tile):
                missing = form.target(of_teacher) - gaps
                here = slice(r.start - first, r.stop - first)
                if for_rows:
                    rows[here] += (form.loss(missing) * counts).sum(1)
                    correct[here] &= ~((gaps < 0) & counts).any(1)
                    sums += gap_sums(gaps, of_teacher, missing, counts)
                if not wanted:
                    continue
                slopes = form.slope(missing).mul_(counts).mul_(factors[r, None])
                if for_rows:
                    whole = slopes.sum(1, keepdim=True)
                    of_anchors[here] += whole * pool.positives[r].to(wide) - slopes @ pool.positives[c].to(
                        wide
                    )
                    of_positives[here] += whole * pool.anchors[r].to(wide)
                if for_columns:
                    there = slice(c.start - first, c.stop - first)
                    of_positives[there] -= slopes.T @ pool.anchors[r].to(wide)
        rows /= negatives[pool.own].clamp_min(1)
        total = (weights.to(wide) * rows).sum()
        ctx.save_for_backward(of_anchors.to(anchors.dtype), of_positives.to(positives.dtype))
        ctx.mark_non_differentiable(rows, correct, sums)
        return total, rows, correct, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (upstream.to(stored.dtype) * stored for stored in ctx.saved_tensors)
        return (*gradients, None, None, None, None, None, None, None, None)


def _bands(pool: Pool, wanted: bool, alone: bool) -> list[tuple[slice, slice, bool, bool]]:
    """The rectangles of the similarities with own rows and own columns: (rows, columns, for rows, for columns)."""
    everything = slice(0, len(pool.groups))
    if alone:
        return [(everything, everything, True, True)]
    band = [(pool.own, everything, True, False)]
    return [*band, (everything, pool.own, False, True)] if wanted else band


def _tiles(
    pool: Pool, rows: slice, columns: slice, wide: torch.dtype, tile: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Yield (rows, columns, student's gaps, teacher's gaps, which of them count) of every tile."""
    for r in _pieces(rows, tile):
        anchors, of_teacher = pool.anchors[r].to(wide), pool.teacher_anchors[r].to(wide)
        own = (anchors * pool.positives[r].to(wide)).sum(1, keepdim=True)
        teachers_own = (of_teacher * pool.teacher_positives[r].to(wide)).sum(1, keepdim=True)
        for c in _pieces(columns, tile):
            gaps = own - anchors @ pool.positives[c].to(wide).T
            teacher_gaps = teachers_own - of_teacher @ pool.teacher_positives[c].to(wide).T
            yield r, c, gaps, teacher_gaps, pool.groups[r, None] != pool.groups[None, c]


def _pieces(whole: slice, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``whole``."""
    for start in range(whole.start, whole.stop, size):
        yield slice(start, min(start + size, whole.stop))
