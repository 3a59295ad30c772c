"""The vocabulary loss and its like: linear layer and cross entropy, the mean over all rows.

"dense" is F.cross_entropy(F.linear(...)) and nothing else; the reference also says which rows are right. torch's own
F.linear_cross_entropy works on 256 rows at a time: by itself it would choose 2 to 4 at this vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.problem import Outcome, Problem, Run, not_here
from benchmarks.turns.process import Unavailable
from kernels.implementation import ImplementationUnavailable
from kernels.vocabulary import vocabulary_loss

_CHUNK_ROWS: Final = 256


class Inputs(NamedTuple):
    """Rows of a batch and the table; the first three have gradients."""

    hidden: Tensor  # (M, D)
    table: Tensor  # (V, D)
    bias: Tensor  # (V,)
    targets: Tensor  # (M,)


def make(problem: Problem, *, small: bool = False) -> Inputs:
    """The tensors of ``problem``; ``small`` are few of the same kind, for the error."""
    rows, width, ids = (problem.size[name] for name in ("rows", "width", "ids"))
    if small:
        rows, ids = min(rows, 64), min(ids, 5003)
    generator = torch.Generator().manual_seed(rows)
    table = torch.empty(ids, width).normal_(std=width**-0.5, generator=generator)
    hidden = torch.randn(rows, width, generator=generator)
    bias = torch.randn(ids, generator=generator).mul_(0.1)
    dtype = getattr(torch, problem.dtype)
    targets = torch.randint(ids, (rows,), generator=generator).to(problem.device)
    hidden, table, bias = (side.to(problem.device, dtype).requires_grad_() for side in (hidden, table, bias))
    return Inputs(hidden, table, bias, targets)


def truth(inputs: Inputs) -> Outcome:
    """In float64, by the definition."""
    hidden, table, bias = (side.detach().double().requires_grad_() for side in inputs[:3])
    return ours("reference")(Inputs(hidden, table, bias, inputs.targets))()


def ours(implementation: str) -> Callable[[Inputs], Run]:
    """One of the implementations behind ``vocabulary_loss``."""

    def total(hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        weights = torch.full(targets.shape, 1 / len(targets), device=hidden.device)
        try:
            return vocabulary_loss(hidden, table, bias, targets, weights, implementation=implementation).total
        except ImplementationUnavailable as error:
            raise not_here(error) from None

    return _of_function(total)


def _dense(hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, table, bias), targets)


def _torch_chunks(hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=_CHUNK_ROWS)
    chunked: Any = functional.linear_cross_entropy
    loss: Tensor = chunked(hidden, table, targets, linear_bias=bias, options=options)
    return loss


def _compiled(inputs: Inputs) -> Run:
    return _of_function(torch.compile(_dense, dynamic=False))(inputs)


def _liger(inputs: Inputs) -> Run:
    _needs_a_gpu(inputs)
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        raise Unavailable("liger-kernel is not installed") from None
    loss = LigerFusedLinearCrossEntropyLoss()
    return _of_function(lambda hidden, table, bias, targets: loss(table, hidden, targets, bias))(inputs)


def _cut_cross_entropy(inputs: Inputs) -> Run:
    _needs_a_gpu(inputs)
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError:
        raise Unavailable("cut-cross-entropy is not installed") from None
    if inputs.hidden.dtype == torch.float32:
        raise Unavailable("its kernels take bfloat16 and float16")
    # The published version has no bias: it is left out, and so is its gradient.
    return _of_function(
        lambda hidden, table, bias, targets: linear_cross_entropy(hidden, table, targets) + 0.0 * bias.sum()
    )(inputs)


def _needs_a_gpu(inputs: Inputs) -> None:
    if inputs.hidden.device.type == "cpu":
        raise Unavailable("its kernels are Triton's: they need a GPU")


def _of_function(function: Callable[..., Tensor]) -> Callable[[Inputs], Run]:
    def prepare(inputs: Inputs) -> Run:
        def run() -> Outcome:
            loss = function(*inputs)
            return Outcome(loss.detach(), torch.autograd.grad(loss, inputs[:3]))

        return run

    return prepare


CONTESTANTS: Final[dict[str, tuple[str, Callable[[Inputs], Run]]]] = {
    "dense": ("dense: cross_entropy(linear)", _of_function(_dense)),
    **{name: (f"ours, {name}", ours(name)) for name in ("reference", "streaming", "triton", "torch")},
    "compiled": ("dense under torch.compile", _compiled),
    "torch_chunks": ("F.linear_cross_entropy, 256 rows", _of_function(_torch_chunks)),
    "liger": ("liger-kernel", _liger),
    "cut_cross_entropy": ("cut-cross-entropy", _cut_cross_entropy),
}
