"""The vocabulary loss in tiles of positions x vocabulary, so that the logits never exist all at once.

With p = softmax(z) and upstream gradient g_i of loss_i:

    d_i = p_i - onehot(target_i)
    d hidden_i = g_i d_i @ table      d table = d^T @ (g * hidden)      d bias = g @ d

The forward keeps three numbers of a row for each tile (see shard.py) and puts them together at the end, over
ranks too: one collective. The upstream gradient scales rows of ``hidden``, not of d, so d can be made before
g is known. A batch whose logits fit the memory budget is one tile: they are overwritten by d in the forward
and kept, three matrix products in all. A larger one makes d again in the backward, tile by tile: four
products, and no memory that grows with positions x vocabulary. There the vocabulary is the outer loop, so
that each row of the table's gradient is finished, in float32, before the next is begun: it is written once
and needs no second copy. Across ranks the gradient of hidden is added up once, at the end.

A tile is sized for the matrix products; within it the float32 part runs over strips that stay in the
processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.vocabulary.shard import Shard, gather_parts, join_parts

TILE_BYTES = 128 * 2**20  # of logits in the inputs' dtype
TILE_ROWS = 8192


def vocabulary_loss_streaming(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor,
    targets: Tensor,
    shard: Shard,
    *,
    tile_bytes: int = TILE_BYTES,
    tile_rows: int = TILE_ROWS,
) -> tuple[Tensor, Tensor]:
    """Return (losses (M,), correct (M,)), holding at most ``tile_bytes`` of logits (at least one column)."""
    rows = max(1, min(len(hidden), tile_rows))
    columns = max(1, min(shard.counted, tile_bytes // (rows * table.element_size())))
    losses, correct = _VocabularyLoss.apply(
        hidden, table, bias, targets, shard, rows, columns, torch.is_grad_enabled()
    )
    return losses, correct


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        bias: Tensor,
        targets: Tensor,
        shard: Shard,
        rows: int,
        columns: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        local = targets - shard.first
        tiles = list(_pieces(shard.counted, columns))
        in_one_tile = len(hidden) <= rows and len(tiles) == 1
        parts = hidden.new_empty((len(tiles), 3, len(hidden)), dtype=wide)
        buffer = hidden.new_empty(rows * columns)
        for number, ids in enumerate(tiles):
            for block in _pieces(len(hidden), rows):
                logits = _logits(hidden[block], table[ids], bias[ids], buffer)
                _know(logits, local[block] - ids.start, parts[number, :, block])
        if tiles:
            own = join_parts(parts)
        else:  # a rank that holds nothing but padding
            own = parts.new_tensor([-torch.inf, 0.0, -torch.inf])[:, None].expand(3, len(hidden))
        most, total, of_target = join_parts(gather_parts(own, shard.ranks))
        logarithm = total.log()
        losses = (most - of_target) + logarithm
        kept = None
        if in_one_tile and with_gradient:
            kept = buffer[: len(hidden) * shard.counted].view(len(hidden), shard.counted)
            _differentiate(kept, local, most, logarithm, losses)
        # The table is saved as the parameter that it is: ZeRO-3 frees and refills its storage in between.
        ctx.save_for_backward(hidden, table, bias, local, most, logarithm, losses.clone(), kept)
        ctx.shard, ctx.rows, ctx.columns = shard, rows, columns
        correct = of_target >= most
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, table, bias, local, most, logarithm, losses, kept = ctx.saved_tensors
        shard, rows = ctx.shard, ctx.rows
        wants_hidden, wants_table, wants_bias = ctx.needs_input_grad[:3]
        scaled = hidden * upstream[:, None].to(hidden.dtype)
        of_hidden = torch.zeros_like(hidden, dtype=upstream.dtype) if wants_hidden else None
        of_table = torch.zeros_like(table) if wants_table else None
        of_bias = torch.zeros_like(bias) if wants_bias else None
        buffer = hidden.new_empty(0 if kept is not None else rows * ctx.columns)
        for ids in _pieces(shard.counted, ctx.columns):
            table_rows = torch.zeros_like(table[ids], dtype=upstream.dtype) if wants_table else None
            bias_rows = torch.zeros_like(bias[ids], dtype=upstream.dtype) if wants_bias else None
            for block in _pieces(len(hidden), rows):
                if kept is None:
                    difference = _logits(hidden[block], table[ids], bias[ids], buffer)
                    _differentiate(
                        difference, local[block] - ids.start, most[block], logarithm[block], losses[block]
                    )
                else:
                    difference = kept
                if of_hidden is not None:
                    _add_product(of_hidden[block], difference, table[ids])
                if table_rows is not None:
                    _add_product(table_rows, difference.T, scaled[block])
                if bias_rows is not None:
                    bias_rows += upstream[block].to(hidden.dtype) @ difference
            if of_table is not None and table_rows is not None:
                of_table[ids] = table_rows
            if of_bias is not None and bias_rows is not None:
                of_bias[ids] = bias_rows
        if of_hidden is not None:
            if shard.ranks is not None and of_hidden.numel():
                dist.all_reduce(of_hidden, group=shard.ranks)
            of_hidden = of_hidden.mul_(upstream[:, None]).to(hidden.dtype)
        return of_hidden, of_table, of_bias, None, None, None, None, None


def _logits(hidden: Tensor, table: Tensor, bias: Tensor, buffer: Tensor) -> Tensor:
    """(rows, ids) logits, written into ``buffer``: fresh memory would cost a page fault for every 4 KiB."""
    logits = buffer[: len(hidden) * len(table)].view(len(hidden), len(table))
    return torch.addmm(bias, hidden, table.T, out=logits)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``, which may be wider than they are."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _know(logits: Tensor, targets: Tensor, known: Tensor) -> None:
    """Fill ``known`` (3, rows) with the m, s, t of ``logits`` (rows, ids); see shard.py."""
    for rows in _strips(logits):
        strip = logits[rows].to(known.dtype)
        most = strip.amax(1)
        known[0, rows] = most
        known[1, rows] = (strip - most[:, None]).exp_().sum(1)
    inside = (targets >= 0) & (targets < logits.shape[1])
    of_target = logits.gather(1, targets.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    known[2] = of_target.to(known.dtype).masked_fill_(~inside, -torch.inf)


def _differentiate(logits: Tensor, targets: Tensor, most: Tensor, logarithm: Tensor, losses: Tensor) -> None:
    """Overwrite ``logits`` (rows, ids) with p - onehot."""
    for rows in _strips(logits):
        strip = logits[rows].to(most.dtype) - most[rows, None]
        logits[rows] = strip.sub_(logarithm[rows, None]).exp_()
    inside = (targets >= 0) & (targets < logits.shape[1])
    at = targets.clamp(0, logits.shape[1] - 1)[:, None]
    hit = torch.expm1(-losses).to(logits.dtype)[:, None]
    logits.scatter_(1, at, torch.where(inside[:, None], hit, logits.gather(1, at)))


def _strips(logits: Tensor) -> Iterator[slice]:
    """Yield slices of rows whose float32 part stays in the processor's cache."""
    strip_bytes = 2**20 if logits.device.type == "cpu" else 2**26
    return _pieces(len(logits), max(1, strip_bytes // (4 * max(1, logits.shape[1]))))


def _pieces(length: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``length``."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
