"""The libraries as operators of torch, known to its compiler and to autograd.

The forward stores the gradients of anchors and positives and the slope of every term; the gradient of the vectors,
which may be many more than the rows, is made from the slopes in the backward and never held in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.margin.cuda.library import empty_solution, solve_rows, solve_vectors
from kernels.margin.form import GapSums, MarginForm, MarginLoss


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
    total, rows, correct, sums, *_ = explicit_margin(
        anchors, positives, vectors, negatives, teacher_gaps, weights, *form, wanted
    )
    return MarginLoss(total, rows, correct, GapSums(*sums))


@torch.library.custom_op("calque::explicit_margin", mutates_args=())
def explicit_margin(
    anchors: Tensor,
    positives: Tensor,
    vectors: Tensor,
    negatives: Tensor,
    teacher_gaps: Tensor,
    weights: Tensor,
    kind: str,
    scale: float,
    offset: float,
    minimum: float | None,
    maximum: float | None,
    tau: float,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return total (), rows (Q,), correct (Q,), sums (6,) and, if wanted, slopes (Q, K) and two gradients (Q, E)."""
    form = MarginForm(kind, scale, offset, minimum, maximum, tau)  # type: ignore[arg-type]
    found = solve_rows(anchors, positives, vectors, negatives, teacher_gaps, weights, form, wanted)
    total = (weights.to(found.losses.dtype) * found.losses).sum()
    return total, found.losses, found.correct, found.sums.sum(0), *found[3:]


@explicit_margin.register_fake
def _fake_rows(anchors: Tensor, positives: Tensor, vectors: Tensor, negatives: Tensor, *rest: Any) -> Any:
    losses, correct, sums, *wanted = empty_solution(anchors, negatives, rest[-1])
    return losses.new_empty(()), losses, correct, sums.new_empty(6), *wanted


@torch.library.custom_op("calque::explicit_margin_of_vectors", mutates_args=())
def gradient_of_vectors(anchors: Tensor, negatives: Tensor, slopes: Tensor, count: int) -> Tensor:
    """Return the gradient (count, E) of the vectors for the slopes (Q, K)."""
    return solve_vectors(anchors, negatives, slopes, count)


@gradient_of_vectors.register_fake
def _fake_vectors(anchors: Tensor, negatives: Tensor, slopes: Tensor, count: int) -> Tensor:
    return anchors.new_empty((count, anchors.shape[1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.count, ctx.wanted = len(inputs[2]), inputs[-1]
    ctx.save_for_backward(inputs[0], inputs[3], *output[4:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    if not ctx.wanted:
        raise RuntimeError("explicit_margin: no gradient was wanted when the loss was made")
    anchors, negatives, slopes, of_anchors, of_positives = ctx.saved_tensors
    of_vectors = (
        gradient_of_vectors(anchors.detach(), negatives, slopes * upstream, ctx.count)
        if ctx.needs_input_grad[2]
        else None
    )
    near = (upstream.to(stored.dtype) * stored for stored in (of_anchors, of_positives))
    return (*near, of_vectors, *[None] * 10)


explicit_margin.register_autograd(_backward, setup_context=_keep)
