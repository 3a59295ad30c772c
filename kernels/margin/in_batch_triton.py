"""The in-batch margin loss on a GPU: no similarity, of student or teacher, leaves the processor that makes it.

Row i is compared with the positives of all rows j of another group; the teacher's gap of a tile is made from the
teacher's vectors beside the student's:

    Ds_ij = <a_i, p_i> - <a_i, p_j>               Dt_ij = <ta_i, tp_i> - <ta_i, tp_j>
    row_i = mean over j of f(D'_ij - Ds_ij)       s_ij  = c_i f'(D'_ij - Ds_ij),  c_i = w_i / number of j
    da_i  = pull_i p_i - sum_j s_ij p_j           dp_j  = pull_j a_j - sum_i s_ij a_i,  pull_i = sum_j s_ij

Three kernels: every row's own similarity; the sums over j of this rank's rows; and one for either gradient, which are
of one form: pull_x y_x - sum_y s y, with x this rank's vectors of one side and y all vectors of the other. There a
program owns (rows x, chunk of coordinates) and goes through y in order, making the tiles again for each chunk:
nothing is added by two programs, so a repetition is bitwise the same.

Products of bfloat16 and float16 are summed in float32; those of float32 are made of three tf32 products, as exact as
float32. c is divided by its largest before slopes are rounded to the vectors' dtype for their product, and
multiplied with it afterwards: what float16 can not hold beside the largest does not count.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from kernels.aot import AotVariant
from kernels.margin.explicit_triton import evaluate, target_of
from kernels.margin.form import GapSums, MarginForm, MarginLoss
from kernels.margin.pool import gather_pool, negatives_of_rows

_FOUND = 7  # columns of what _rows_kernel finds: loss, pull, active, Ds, Ds^2, Dt, Dt^2

# Triton's interpreter computes garbage with bfloat16; as float32 the same values give what a GPU's units give.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


class Blocks(NamedTuple):
    """The tiles of a program, and how many warps share them."""

    rows: int  # x
    columns: int  # y
    inner: int  # coordinates that a product reads at once
    chunk: int  # coordinates of a gradient that a program owns
    warps: int


# The largest that fit the registers of sm_80, sm_90 and sm_100; three products for one need more of them.
SIXTEEN_BITS = Blocks(64, 64, 64, 128, 8)
FLOAT32 = Blocks(64, 32, 32, 64, 8)


@triton.jit
def _factor(tile):
    """What tl.dot may be given."""
    if _INTERPRETED and tile.dtype == tl.bfloat16:
        return tile.to(tl.float32)
    return tile


@triton.jit
def _products(
    x, y, rows, columns, row_count, column_count, width, x_row, y_row,
    PRECISION: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """<x_i, y_j> (BX, BY) of rows and columns (int64); 0 beyond the last."""
    products = tl.zeros((BX, BY), dtype=tl.float32)
    for start in range(0, width, BE):
        at = start + tl.arange(0, BE)
        x_tile = tl.load(
            x + rows[:, None] * x_row + at[None, :],
            mask=(rows[:, None] < row_count) & (at[None, :] < width),
            other=0.0,
        )
        y_tile = tl.load(
            y + columns[None, :] * y_row + at[:, None],
            mask=(columns[None, :] < column_count) & (at[:, None] < width),
            other=0.0,
        )
        products = tl.dot(_factor(x_tile), _factor(y_tile), products, input_precision=PRECISION)
    return products


@triton.jit
def _own_kernel(x, y, own, count, width, x_row, y_row, BX: tl.constexpr, BE: tl.constexpr):
    """own (R,) = <x_i, y_i>."""
    rows = tl.program_id(0).to(tl.int64) * BX + tl.arange(0, BX)
    products = tl.zeros((BX, BE), dtype=tl.float32)
    for start in range(0, width, BE):
        at = start + tl.arange(0, BE)
        here = (rows[:, None] < count) & (at[None, :] < width)
        x_tile = tl.load(x + rows[:, None] * x_row + at[None, :], mask=here, other=0.0).to(tl.float32)
        y_tile = tl.load(y + rows[:, None] * y_row + at[None, :], mask=here, other=0.0).to(tl.float32)
        products += x_tile * y_tile
    tl.store(own + rows, tl.sum(products, 1), mask=rows < count)


@triton.jit
def _rows_kernel(
    anchors, positives, teacher_anchors, teacher_positives, own, teacher_own, groups, found, correct,
    first, last, count, width, teacher_width, x_row, y_row, teacher_x_row, teacher_y_row,
    scale, offset, minimum, maximum, tau,
    KIND: tl.constexpr, PRECISION: tl.constexpr, TEACHER_PRECISION: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sums over all columns of rows [first, last), of which this program has BX."""
    rows = first + tl.program_id(0).to(tl.int64) * BX + tl.arange(0, BX)
    is_row = rows < last
    group = tl.load(groups + rows, mask=is_row, other=0)
    of_positive = tl.load(own + rows, mask=is_row, other=0.0)
    teachers_own = tl.load(teacher_own + rows, mask=is_row, other=0.0)
    loss, pull, active = tl.zeros((BX,), tl.float32), tl.zeros((BX,), tl.float32), tl.zeros((BX,), tl.float32)
    student, student_squares = tl.zeros((BX,), tl.float32), tl.zeros((BX,), tl.float32)
    teacher, teacher_squares = tl.zeros((BX,), tl.float32), tl.zeros((BX,), tl.float32)
    wrong = tl.zeros((BX,), tl.int32)
    for start in range(0, count, BY):
        columns = (start + tl.arange(0, BY)).to(tl.int64)
        gaps = of_positive[:, None] - _products(
            anchors, positives, rows, columns, last, count, width, x_row, y_row, PRECISION, BX, BY, BE
        )  # fmt: skip
        of_teacher = teachers_own[:, None] - _products(
            teacher_anchors, teacher_positives, rows, columns, last, count, teacher_width,
            teacher_x_row, teacher_y_row, TEACHER_PRECISION, BX, BY, BE,
        )  # fmt: skip
        other = tl.load(groups + columns, mask=columns < count, other=0)
        negative = (group[:, None] != other[None, :]) & is_row[:, None] & (columns < count)[None, :]
        missing = target_of(of_teacher, scale, offset, minimum, maximum, KIND) - gaps
        part, slope = evaluate(missing, tau, KIND)
        loss += tl.sum(tl.where(negative, part, 0.0), 1)
        pull += tl.sum(tl.where(negative, slope, 0.0), 1)
        active += tl.sum(tl.where(negative & (missing > 0), 1.0, 0.0), 1)
        wrong += tl.sum(tl.where(negative & (gaps < 0), 1, 0), 1)
        gaps, of_teacher = tl.where(negative, gaps, 0.0), tl.where(negative, of_teacher, 0.0)
        student += tl.sum(gaps, 1)
        student_squares += tl.sum(gaps * gaps, 1)
        teacher += tl.sum(of_teacher, 1)
        teacher_squares += tl.sum(of_teacher * of_teacher, 1)
    at = found + (rows - first) * COLUMNS
    tl.store(at, loss, mask=is_row)
    tl.store(at + 1, pull, mask=is_row)
    tl.store(at + 2, active, mask=is_row)
    tl.store(at + 3, student, mask=is_row)
    tl.store(at + 4, student_squares, mask=is_row)
    tl.store(at + 5, teacher, mask=is_row)
    tl.store(at + 6, teacher_squares, mask=is_row)
    tl.store(correct + rows - first, wrong == 0, mask=is_row)


@triton.jit
def _gradient_kernel(
    x, y, teacher_x, teacher_y, own, teacher_own, groups, shares, largest, pulls, gradient,
    first, last, count, width, teacher_width, x_row, y_row, teacher_x_row, teacher_y_row,
    scale, offset, minimum, maximum, tau,
    X_IS_ROW: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr, TEACHER_PRECISION: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BE: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """pull_x y_x - sum_y s y of x [first, last): BX of them in this program, BO coordinates."""
    xs = first + tl.program_id(0).to(tl.int64) * BX + tl.arange(0, BX)
    is_x = xs < last
    chunk = tl.program_id(1) * BO + tl.arange(0, BO)
    group = tl.load(groups + xs, mask=is_x, other=0)
    mixed = tl.zeros((BX, BO), dtype=tl.float32)
    for start in range(0, count, BY):
        ys = (start + tl.arange(0, BY)).to(tl.int64)
        is_y = ys < count
        similarities = _products(x, y, xs, ys, last, count, width, x_row, y_row, PRECISION, BX, BY, BE)
        teachers = _products(
            teacher_x, teacher_y, xs, ys, last, count, teacher_width, teacher_x_row, teacher_y_row,
            TEACHER_PRECISION, BX, BY, BE,
        )  # fmt: skip
        if X_IS_ROW:
            gaps = tl.load(own + xs, mask=is_x, other=0.0)[:, None] - similarities
            of_teacher = tl.load(teacher_own + xs, mask=is_x, other=0.0)[:, None] - teachers
        else:
            gaps = tl.load(own + ys, mask=is_y, other=0.0)[None, :] - similarities
            of_teacher = tl.load(teacher_own + ys, mask=is_y, other=0.0)[None, :] - teachers
        missing = target_of(of_teacher, scale, offset, minimum, maximum, KIND) - gaps
        _, slopes = evaluate(missing, tau, KIND)
        if not X_IS_ROW:
            slopes *= tl.load(shares + ys, mask=is_y, other=0.0)[None, :]
        other = tl.load(groups + ys, mask=is_y, other=0)
        slopes = tl.where((group[:, None] != other[None, :]) & is_x[:, None] & is_y[None, :], slopes, 0.0)
        y_chunk = tl.load(
            y + ys[:, None] * y_row + chunk[None, :], mask=is_y[:, None] & (chunk[None, :] < width), other=0.0
        )
        slopes = slopes.to(y_chunk.dtype)
        mixed = tl.dot(_factor(slopes), _factor(y_chunk), mixed, input_precision=PRECISION)
    if X_IS_ROW:
        mixed *= tl.load(shares + xs, mask=is_x, other=0.0)[:, None]
    here = is_x[:, None] & (chunk[None, :] < width)
    mirror = tl.load(y + xs[:, None] * y_row + chunk[None, :], mask=here, other=0.0).to(tl.float32)
    pull = tl.load(pulls + xs - first, mask=is_x, other=0.0)
    result = pull[:, None] * mirror - tl.load(largest) * mixed
    tl.store(gradient + (xs - first)[:, None] * width + chunk[None, :], result, mask=here)


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
        blocks: Blocks | None,
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        pool = gather_pool(anchors, positives, teacher_anchors, teacher_positives, groups, weights, ranks)
        first, last = pool.own.start, pool.own.stop
        rows, count, width = last - first, len(pool.groups), anchors.shape[1]
        a, p = pool.anchors.contiguous(), pool.positives.contiguous()
        ta, tp = (_at_most_float32(part) for part in (pool.teacher_anchors, pool.teacher_positives))
        blocks = blocks or (FLOAT32 if torch.float32 in (a.dtype, ta.dtype) else SIXTEEN_BITS)
        numbers = pool.groups.contiguous()
        negatives = negatives_of_rows(numbers)
        shares = pool.weights.float() / negatives.clamp_min(1)
        found = anchors.new_zeros((rows, _FOUND), dtype=torch.float32)
        correct = anchors.new_ones(rows, dtype=torch.bool)
        gradients = [anchors.new_zeros((rows if wanted else 0, width)) for _ in range(2)]
        if rows:
            own = [_own(x, y, blocks) for x, y in ((a, p), (ta, tp))]
            sizes = (first, last, count, width, ta.shape[1])
            limits = (
                -math.inf if form.minimum is None else form.minimum,
                math.inf if form.maximum is None else form.maximum,
            )
            constants = (form.scale, form.offset, *limits, form.tau)
            how = {
                **{"KIND": form.kind, "PRECISION": _precision(a), "TEACHER_PRECISION": _precision(ta)},
                **{"BX": blocks.rows, "BY": blocks.columns, "BE": blocks.inner, "num_warps": blocks.warps},
            }
            across = triton.cdiv(rows, blocks.rows)
            _rows_kernel[(across,)](
                a, p, ta, tp, *own, numbers, found, correct, *sizes, *_strides(a, p, ta, tp), *constants,
                COLUMNS=_FOUND, **how,
            )  # fmt: skip
            if wanted:
                pulls = (shares[first:last] * found[:, 1]).contiguous()
                largest = shares.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
                sides = ((a, p, ta, tp), (p, a, tp, ta))
                for is_row, side, gradient in zip((True, False), sides, gradients, strict=True):
                    _gradient_kernel[(across, triton.cdiv(width, blocks.chunk))](
                        *side, *own, numbers, shares / largest, largest, pulls, gradient,
                        *sizes, *_strides(*side), *constants, X_IS_ROW=is_row, BO=blocks.chunk, **how,
                    )  # fmt: skip
        negatives = negatives[pool.own]
        losses = found[:, 0] / negatives.clamp_min(1)
        sums = torch.cat([negatives.sum().double()[None], found[:, 2:].sum(0, dtype=torch.float64)])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses, correct, sums)
        return (weights.float() * losses).sum(), losses, correct, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (upstream.to(stored.dtype) * stored for stored in ctx.saved_tensors)
        return (*gradients, None, None, None, None, None, None, None, None)


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
    blocks: Blocks | None = None,
) -> MarginLoss:
    """See ``kernels.margin.in_batch_margin_loss``; beyond the pool and the gradients it holds a few (R,)."""
    wanted = torch.is_grad_enabled() and (anchors.requires_grad or positives.requires_grad)
    total, rows, correct, sums = _InBatch.apply(
        anchors, positives, teacher_anchors, teacher_positives, groups, form, weights, ranks, blocks, wanted
    )
    return MarginLoss(total, rows, correct, GapSums(*sums))


def _own(x: Tensor, y: Tensor, blocks: Blocks) -> Tensor:
    own = x.new_empty(len(x), dtype=torch.float32)
    grid = (triton.cdiv(len(x), blocks.rows),)
    _own_kernel[grid](x, y, own, *x.shape, *_strides(x, y), BX=blocks.rows, BE=blocks.inner)
    return own


def _strides(*parts: Tensor) -> tuple[int, ...]:
    return tuple(part.stride(0) for part in parts)


def _at_most_float32(part: Tensor) -> Tensor:
    return (part.float() if part.dtype == torch.float64 else part).contiguous()


def _precision(part: Tensor) -> str:
    """How float32 is multiplied; the interpreter and AMD know the plain way alone."""
    three = part.is_cuda and torch.version.hip is None and part.dtype == torch.float32
    return "tf32x3" if three else "ieee"


def aot_variants() -> Iterator[AotVariant]:
    """The kernels at width 768, as they are launched: dtypes of student and teacher, and how float32 is multiplied."""
    cuda = ("sm_80", "sm_90", "sm_100")
    for dtype, of_teacher, precision, targets in (
        ("bf16", "bf16", "ieee", (*cuda, "gfx942")),
        ("bf16", "fp32", "tf32x3", cuda),
        ("fp16", "fp16", "ieee", (*cuda, "gfx942")),
        ("fp32", "fp32", "tf32x3", cuda),
        ("fp32", "fp32", "ieee", ("gfx942",)),
    ):
        blocks = FLOAT32 if of_teacher == "fp32" else SIXTEEN_BITS
        for kernel, function, sides, more in (
            ("rows", _rows_kernel, ("anchors", "positives"), {"COLUMNS": _FOUND}),
            ("anchors", _gradient_kernel, ("x", "y"), {"BO": blocks.chunk, "X_IS_ROW": True}),
            ("positives", _gradient_kernel, ("x", "y"), {"BO": blocks.chunk, "X_IS_ROW": False}),
        ):
            constants: dict[str, Any] = {
                **{"KIND": "softplus", "PRECISION": precision, "TEACHER_PRECISION": precision},
                **{"BX": blocks.rows, "BY": blocks.columns, "BE": blocks.inner, **more},
            }
            signature = dict.fromkeys(function.arg_names, "fp32")
            signature |= {name: f"*{dtype}" for name in (*sides, "gradient") if name in signature}
            signature |= {f"teacher_{name}": f"*{of_teacher}" for name in sides}
            floats = ("own", "teacher_own", "shares", "largest", "pulls", "found")
            signature |= {name: "*fp32" for name in floats if name in signature}
            signature |= {"groups": "*i64", **({"correct": "*i1"} if "correct" in signature else {})}
            signature |= dict.fromkeys(("first", "last", "count", "width", "teacher_width"), "i32")
            signature |= {name: "i32" for name in signature if name.endswith("_row")}
            signature |= dict.fromkeys(constants, "constexpr")
            pointers = (name for name, kind in signature.items() if kind.startswith("*"))
            sizes = (name for name in signature if name.endswith(("_row", "width")))
            yield AotVariant(
                f"in_batch_{kernel}_{dtype}_{of_teacher}_{precision}",
                function, signature, constants, (*pointers, *sizes), blocks.warps,
                tensor_cores=True, targets=targets,
            )  # fmt: skip
