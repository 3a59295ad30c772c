"""The vocabulary loss in blocks of positions, so that the logits of all of them never exist at once.

With p = softmax(z) and upstream gradient g_i of loss_i:

    d_i = p_i - onehot(target_i)
    d hidden_i = g_i d_i @ table      d table = d^T @ (g * hidden)      d bias = g @ d

The upstream gradient scales rows of ``hidden``, not of d, so d can be made before g is known. A batch that
fits the memory budget is one block: its logits are overwritten by d in the forward and kept, three matrix
products in all. A larger one makes d again in the backward, block by block: four products, and no memory that
grows with M.

A block is sized for the matrix products; within it the float32 part runs over strips that stay in the
processor's cache, which on a CPU is what makes it several times faster than the dense form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

BLOCK_BYTES = 128 * 2**20  # of logits in the inputs' dtype


def vocabulary_loss_streaming(
    hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor, *, block_bytes: int = BLOCK_BYTES
) -> tuple[Tensor, Tensor]:
    """Return (losses (M,), correct (M,)), holding at most ``block_bytes`` of logits (at least one row)."""
    block = max(1, block_bytes // (table.shape[0] * table.element_size()))
    losses, correct = _VocabularyLoss.apply(hidden, table, bias, targets, block, torch.is_grad_enabled())
    return losses, correct


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        bias: Tensor,
        targets: Tensor,
        block: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        keep = with_gradient and len(hidden) <= block
        losses = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        kept = None
        for rows in _pieces(len(hidden), block):
            logits = functional.linear(hidden[rows], table, bias)
            _losses_of_block(logits, targets[rows], losses[rows], correct[rows], overwrite=keep)
            kept = logits if keep else None
        # The table is saved as the parameter that it is: ZeRO-3 frees and refills its storage in between.
        ctx.save_for_backward(hidden, table, bias, targets, kept)
        ctx.block = block
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, table, bias, targets, kept = ctx.saved_tensors
        wants_hidden, wants_table, wants_bias = ctx.needs_input_grad[:3]
        upstream = upstream.to(hidden.dtype)
        in_one_block = len(hidden) <= ctx.block
        # Blocks are added up in float32; a single block is rounded once, by its own matrix product.
        wide = hidden.dtype if in_one_block else torch.promote_types(hidden.dtype, torch.float32)
        hidden_gradient = torch.zeros_like(hidden) if wants_hidden else None
        table_gradient = torch.zeros_like(table, dtype=wide) if wants_table else None
        bias_gradient = torch.zeros_like(bias, dtype=wide) if wants_bias else None
        for rows in _pieces(len(hidden), ctx.block):
            if kept is None:
                difference = functional.linear(hidden[rows], table, bias)
                _losses_of_block(difference, targets[rows], None, None, overwrite=True)
            else:
                difference = kept
            scale = upstream[rows]
            if hidden_gradient is not None:
                torch.mul(difference @ table, scale[:, None], out=hidden_gradient[rows])
            if table_gradient is not None:
                table_gradient += difference.T @ (hidden[rows] * scale[:, None])
            if bias_gradient is not None:
                bias_gradient += scale @ difference
        return (
            hidden_gradient,
            None if table_gradient is None else table_gradient.to(table.dtype),
            None if bias_gradient is None else bias_gradient.to(bias.dtype),
            None,
            None,
            None,
        )


def _losses_of_block(
    logits: Tensor, targets: Tensor, losses: Tensor | None, correct: Tensor | None, *, overwrite: bool
) -> None:
    """Fill ``losses`` and ``correct`` from ``logits`` (rows, V); ``overwrite`` makes these p - onehot."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    strip_bytes = 2**20 if logits.device.type == "cpu" else 2**26
    for rows in _pieces(len(logits), max(1, strip_bytes // (logits.shape[1] * wide.itemsize))):
        logarithms = torch.log_softmax(logits[rows], 1, dtype=wide)
        target = targets[rows, None]
        of_target = logarithms.gather(1, target)
        if losses is not None:
            torch.neg(of_target[:, 0], out=losses[rows])
        if correct is not None:
            torch.ge(of_target[:, 0], logarithms.amax(1), out=correct[rows])
        if overwrite:
            probabilities = logarithms.exp_()
            probabilities.scatter_(1, target, torch.expm1(of_target))
            logits[rows] = probabilities


def _pieces(length: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``length``."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
