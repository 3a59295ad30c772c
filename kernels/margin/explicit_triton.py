"""The margin loss with given negatives on a GPU: one program for every row, then one for every vector.

A program holds the whole width of its anchor and takes the negatives of its row, by number, in tiles; each vector is
read once and serves the gap and the gradient of the anchor:

    Ds_k = <a, p> - <a, n_k>     row = mean over present k of f(D'_k - Ds_k)     s_k = w f'(D'_k - Ds_k) / present
    da   = (sum_k s_k) p - sum_k s_k n_k                                         dp  = (sum_k s_k) a
    dv   = - sum over the places (i, k) where v is the negative of s_ik a_i

The slopes s are kept; dv is made from them in the backward by a program for every vector, which goes through the
sorted places of its vector in order. Nothing is added by two programs, so a repetition is bitwise the same. Vectors
are widened when they are read: all that is summed is float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.aot import AotVariant
from kernels.margin.form import GapSums, MarginForm, MarginLoss

ELEMENTS = 4096  # numbers of negatives that a program holds: 32 registers a thread


@triton.jit
def target_of(teacher_gaps, scale, offset, minimum, maximum, KIND: tl.constexpr):
    """D' of teacher's gaps. Comparisons let a NaN pass."""
    if KIND == "fixed":
        return tl.zeros_like(teacher_gaps) + offset
    target = scale * teacher_gaps + offset
    target = tl.where(target < minimum, minimum, target)
    return tl.where(target > maximum, maximum, target)


@triton.jit
def evaluate(missing, tau, KIND: tl.constexpr):
    """f and f' (with respect to Ds) of what is missing, D' - Ds."""
    short = tl.where(missing < 0, 0.0, missing)
    if KIND == "mse":
        loss = missing * missing
        slope = -2 * missing
    elif KIND == "softplus":
        x = missing / tau
        below = tl.exp(-tl.abs(x))
        # log(1 + below): a GPU's logarithm has few digits near 1
        series = below * (1 - below * (0.5 - below * (1.0 / 3 - below * 0.25)))
        loss = tau * (tl.where(x < 0, 0.0, x) + tl.where(below < 1.0 / 64, series, tl.log(1 + below)))
        slope = -tl.where(x < 0, below, 1.0) / (1 + below)
    elif KIND == "squared_hinge":
        loss = short * short
        slope = -2 * short
    else:
        loss = short
        slope = tl.where(missing > 0, -1.0, 0.0)
    return loss, slope


@triton.jit
def _rows_kernel(
    anchors, positives, vectors, negatives, teacher_gaps, factors,
    losses, correct, sums, slopes, of_anchors, of_positives,
    most, width, anchor_row, positive_row, vector_row, scale, offset, minimum, maximum, tau,
    KIND: tl.constexpr, WANTED: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BE)
    inside = columns < width
    anchor = tl.load(anchors + row * anchor_row + columns, mask=inside, other=0.0).to(tl.float32)
    positive = tl.load(positives + row * positive_row + columns, mask=inside, other=0.0).to(tl.float32)
    of_positive = tl.sum(anchor * positive, 0)
    factor = tl.load(factors + row)
    loss, pull = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
    active, wrong = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.int32)
    student, student_squares = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
    teacher, teacher_squares = tl.zeros((BK,), tl.float32), tl.zeros((BK,), tl.float32)
    mixed = tl.zeros((BE,), tl.float32)
    for start in range(0, most, BK):
        k = start + tl.arange(0, BK)
        number = tl.load(negatives + row * most + k, mask=k < most, other=-1)
        present = number >= 0
        tile = tl.load(
            vectors + number[:, None] * vector_row + columns[None, :],
            mask=present[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        of_teacher = tl.load(teacher_gaps + row * most + k, mask=present, other=0.0)
        gaps = of_positive - tl.sum(tile * anchor[None, :], 1)
        missing = target_of(of_teacher, scale, offset, minimum, maximum, KIND) - gaps
        part, slope = evaluate(missing, tau, KIND)
        loss += tl.where(present, part, 0.0)
        active += tl.where(present & (missing > 0), 1.0, 0.0)
        wrong += tl.where(present & (gaps < 0), 1, 0)
        gaps = tl.where(present, gaps, 0.0)
        student += gaps
        student_squares += gaps * gaps
        teacher += of_teacher
        teacher_squares += of_teacher * of_teacher
        if WANTED:
            slope = tl.where(present, slope * factor, 0.0)
            tl.store(slopes + row * most + k, slope, mask=k < most)
            pull += slope
            mixed += tl.sum(slope[:, None] * tile, 0)
    tl.store(losses + row, tl.sum(loss, 0))
    tl.store(correct + row, tl.sum(wrong, 0) == 0)
    tl.store(sums + row * 5, tl.sum(active, 0))
    tl.store(sums + row * 5 + 1, tl.sum(student, 0))
    tl.store(sums + row * 5 + 2, tl.sum(student_squares, 0))
    tl.store(sums + row * 5 + 3, tl.sum(teacher, 0))
    tl.store(sums + row * 5 + 4, tl.sum(teacher_squares, 0))
    if WANTED:
        whole = tl.sum(pull, 0)
        tl.store(of_anchors + row * width + columns, whole * positive - mixed, mask=inside)
        tl.store(of_positives + row * width + columns, whole * anchor, mask=inside)


@triton.jit
def _vectors_kernel(
    anchors, slopes, places, starts, of_vectors, most, width, anchor_row, BK: tl.constexpr, BE: tl.constexpr
):  # fmt: skip
    vector = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BE)
    inside = columns < width
    mixed = tl.zeros((BE,), tl.float32)
    end = tl.load(starts + vector + 1)
    for start in range(tl.load(starts + vector), end, BK):
        at = start + tl.arange(0, BK)
        here = at < end
        place = tl.load(places + at, mask=here, other=0)
        slope = tl.load(slopes + place, mask=here, other=0.0)
        tile = tl.load(
            anchors + (place // most)[:, None] * anchor_row + columns[None, :],
            mask=here[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        mixed -= tl.sum(slope[:, None] * tile, 0)
    tl.store(of_vectors + vector * width + columns, mixed, mask=inside)


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
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        (rows, most), width = negatives.shape, anchors.shape[1]
        sides = [part if part.stride(1) == 1 else part.contiguous() for part in (anchors, positives, vectors)]
        negatives, of_teacher = negatives.contiguous(), teacher_gaps.float().contiguous()
        present = (negatives >= 0).sum(1)
        share = present.clamp_min(1)
        losses = anchors.new_empty(rows, dtype=torch.float32)
        correct = anchors.new_empty(rows, dtype=torch.bool)
        sums = anchors.new_empty((rows, 5), dtype=torch.float32)
        kept = rows if wanted else 0
        slopes = anchors.new_empty((kept, most), dtype=torch.float32)
        of_anchors, of_positives = (anchors.new_empty((kept, width)) for _ in range(2))
        if rows:
            _rows_kernel[(rows,)](
                *sides, negatives, of_teacher, (weights.float() / share).contiguous(),
                losses, correct, sums, slopes, of_anchors, of_positives,
                most, width, *(part.stride(0) for part in sides),
                *(form.scale, form.offset),
                -math.inf if form.minimum is None else form.minimum,
                math.inf if form.maximum is None else form.maximum,
                form.tau, form.kind, wanted, **_blocks(width),
            )  # fmt: skip
        losses /= share
        ctx.save_for_backward(sides[0].detach(), negatives, slopes, of_anchors, of_positives)
        ctx.count = len(vectors)
        counts = torch.cat([present.sum().double()[None], sums.sum(0, dtype=torch.float64)])
        ctx.mark_non_differentiable(losses, correct, counts)
        return (weights.float() * losses).sum(), losses, correct, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        anchors, negatives, slopes, *stored = ctx.saved_tensors
        of_vectors = None
        if ctx.needs_input_grad[2]:
            numbers, places = negatives.flatten().sort(stable=True)
            starts = torch.searchsorted(numbers, torch.arange(ctx.count + 1, device=numbers.device))
            width = anchors.shape[1]
            of_vectors = anchors.new_empty((ctx.count, width))
            if ctx.count:
                _vectors_kernel[(ctx.count,)](
                    anchors, slopes * upstream, places, starts, of_vectors,
                    negatives.shape[1], width, anchors.stride(0), **_blocks(width),
                )  # fmt: skip
        near = (upstream.to(gradient.dtype) * gradient for gradient in stored)
        return (*near, of_vectors, None, None, None, None, None)


def explicit(
    anchors: Tensor,
    positives: Tensor,
    vectors: Tensor,
    negatives: Tensor,
    teacher_gaps: Tensor,
    form: MarginForm,
    weights: Tensor,
) -> MarginLoss:
    """See ``kernels.margin.adaptive_margin_loss``; beyond the gradients it holds a few numbers per negative."""
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (anchors, positives, vectors))
    total, rows, correct, sums = _Explicit.apply(
        anchors, positives, vectors, negatives, teacher_gaps, form, weights, wanted
    )
    return MarginLoss(total, rows, correct, GapSums(*sums))


def _blocks(width: int) -> dict[str, int]:
    """The tile of a program: all of the width, and as many vectors as leave it room."""
    across = triton.next_power_of_2(max(width, 1))
    return {"BK": min(16, max(1, ELEMENTS // across)), "BE": across, "num_warps": 4 if across <= 2048 else 8}


def aot_variants() -> Iterator[AotVariant]:
    """Both kernels at width 768, as they are launched."""
    for name in ("fp32", "bf16", "fp16"):
        element, blocks = f"*{name}", _blocks(768)
        warps = blocks.pop("num_warps")
        rows = {
            **dict.fromkeys(("anchors", "positives", "vectors"), element),
            "negatives": "*i64",
            **dict.fromkeys(("teacher_gaps", "factors", "losses"), "*fp32"),
            "correct": "*i1",
            **dict.fromkeys(("sums", "slopes"), "*fp32"),
            **dict.fromkeys(("of_anchors", "of_positives"), element),
            **dict.fromkeys(("most", "width", "anchor_row", "positive_row", "vector_row"), "i32"),
            **dict.fromkeys(("scale", "offset", "minimum", "maximum", "tau"), "fp32"),
            **dict.fromkeys(("KIND", "WANTED", "BK", "BE"), "constexpr"),
        }
        vectors = {
            "anchors": element,
            **{"slopes": "*fp32", "places": "*i64", "starts": "*i64", "of_vectors": element},
            **dict.fromkeys(("most", "width", "anchor_row"), "i32"),
            **dict.fromkeys(("BK", "BE"), "constexpr"),
        }
        for kernel, function, signature, constants in (
            ("rows", _rows_kernel, rows, {"KIND": "softplus", "WANTED": True, **blocks}),
            ("vectors", _vectors_kernel, vectors, blocks),
        ):
            aligned = [at for at, kind in signature.items() if kind.startswith("*")]
            aligned += [at for at in signature if at == "width" or at.endswith("_row")]
            yield AotVariant(
                f"explicit_{kernel}_{name}", function, signature, constants, tuple(aligned), warps
            )
