"""The adaptive margin loss with explicit negatives: Q anchors, K negatives each, by number among 2 Q vectors.

"gather + einsum" is how it is written without a kernel: the negatives' vectors are copied to (Q, K, E), one einsum
makes the gaps, autograd does the rest. The form is the smooth hinge; no negative is absent, all weights are 1/Q.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.problem import Outcome, Problem, Run, not_here
from kernels.implementation import ImplementationUnavailable
from kernels.margin import MarginForm, adaptive_margin_loss

FORM: Final = MarginForm("softplus", scale=0.8, offset=0.05)


class Inputs(NamedTuple):
    """Triplets; the first three have gradients."""

    anchors: Tensor  # (Q, E)
    positives: Tensor  # (Q, E)
    vectors: Tensor  # (2 Q, E)
    negatives: Tensor  # (Q, K) rows of vectors
    teacher_gaps: Tensor  # (Q, K)


def make(problem: Problem, *, small: bool = False) -> Inputs:
    """The triplets of ``problem``; ``small`` are few of the same kind, for the error."""
    rows = min(problem.size["rows"], 128) if small else problem.size["rows"]
    generator = torch.Generator().manual_seed(rows)
    dtype = getattr(torch, problem.dtype)
    anchors, positives, vectors = (
        functional.normalize(torch.randn(count, problem.size["width"], generator=generator))
        .to(problem.device, dtype)
        .requires_grad_()
        for count in (rows, rows, 2 * rows)
    )
    negatives = torch.randint(2 * rows, (rows, problem.size["negatives"]), generator=generator)
    gaps = torch.randn(negatives.shape, generator=generator).mul_(0.1)
    return Inputs(anchors, positives, vectors, negatives.to(problem.device), gaps.to(problem.device))


def truth(inputs: Inputs) -> Outcome:
    """In float64, by the definition."""
    anchors, positives, vectors = (side.detach().double().requires_grad_() for side in inputs[:3])
    gaps = inputs.teacher_gaps.double()
    return ours("reference")(Inputs(anchors, positives, vectors, inputs.negatives, gaps))()


def ours(implementation: str) -> Callable[[Inputs], Run]:
    """One of the implementations behind ``adaptive_margin_loss``."""

    def prepare(inputs: Inputs) -> Run:
        rows = len(inputs.anchors)
        weights = torch.full((rows,), 1 / rows, device=inputs.anchors.device)

        def run() -> Outcome:
            try:
                loss = adaptive_margin_loss(
                    *inputs, form=FORM, weights=weights, implementation=implementation
                )
            except ImplementationUnavailable as error:
                raise not_here(error) from None
            return Outcome(loss.total.detach(), torch.autograd.grad(loss.total, inputs[:3]))

        return run

    return prepare


def gather(inputs: Inputs) -> Run:
    """As one writes it without a kernel."""
    return _of_function(_gather_and_einsum, inputs)


def compiled(inputs: Inputs) -> Run:
    """The same under torch.compile."""
    return _of_function(torch.compile(_gather_and_einsum, dynamic=False), inputs)


def _gather_and_einsum(
    anchors: Tensor, positives: Tensor, vectors: Tensor, negatives: Tensor, teacher_gaps: Tensor
) -> Tensor:
    of_negative = torch.einsum("qe,qke->qk", anchors, vectors[negatives])
    gaps = (anchors * positives).sum(1, keepdim=True) - of_negative
    return FORM.loss(FORM.target(teacher_gaps) - gaps).mean()


def _of_function(function: Callable[..., Tensor], inputs: Inputs) -> Run:
    def run() -> Outcome:
        loss = function(*inputs)
        return Outcome(loss.detach(), torch.autograd.grad(loss, inputs[:3]))

    return run


CONTESTANTS: Final[dict[str, tuple[str, Callable[[Inputs], Run]]]] = {
    "gather": ("gather + einsum", gather),
    **{
        name: (f"ours, {name}", ours(name)) for name in ("reference", "streaming", "native", "triton", "cuda")
    },
    "compiled": ("gather + einsum under torch.compile", compiled),
}
