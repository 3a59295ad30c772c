"""The vocabulary loss in tiles of positions x vocabulary, so that the logits never exist all at once.

With p = softmax(z) and upstream gradient g_i of loss_i:

    d_i = p_i - onehot(target_i)
    d hidden_i = g_i d_i @ table      d table = d^T @ (g * hidden)      d bias = g @ d

The forward keeps three numbers of a row (see shard.py), carried on from tile to tile and put together over
ranks at the end: one collective. The backward makes each tile's logits again, and d of them. That is a fourth
matrix product beside the three that the dense form has; tiles whose logits fit ``KEPT_BYTES`` are kept instead,
so that a small batch has three. The upstream gradient scales rows of ``hidden`` and not d, which is rounded to
the inputs' dtype.

The vocabulary is the outer loop of the backward: each row of the table's gradient is finished, in float32,
before the next is begun, so it is written once and needs no second copy in float32. Across ranks the gradient of
hidden is added up once, at the end.

What happens within a tile between the products is ``Pointwise``: streaming.py's in torch, fused_triton.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.vocabulary.shard import Shard, gather_parts, join_parts, nothing_known

TILE_ROWS = 8192
# Of logits in the inputs' dtype. A CPU's products need no more; a GPU's are launched fewer times.
TILE_BYTES = {"cpu": 16 * 2**20, "cuda": 128 * 2**20}
ALIGNED = 64  # columns of a tile are a multiple, so that its rows begin where wide loads can
KEPT_BYTES = 64 * 2**20  # of logits that are not made twice


class Pointwise(NamedTuple):
    """What is done with the ``products`` (rows, ids) of a tile, which are its logits without their bias (ids,).

    ``targets`` (rows,) count from the tile's first id, and those of other tiles lie outside of it.
    """

    know: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    """know(products, bias, targets, known): fill ``known`` (3, rows) with m, s, t; see shard.py."""
    differentiate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    """differentiate(products, bias, targets, whole, out): write d to ``out`` (rows, ids), maybe ``products``.

    ``whole`` (3, rows) has, over the whole vocabulary, m, log s and the loss.
    """


class Cut(NamedTuple):
    """How the logits are cut into tiles."""

    rows: int
    columns: int
    kept: int  # how many tiles, of the first, are not made again

    def tiles(self, rows: int, columns: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield number, ids and positions of every tile; all positions of the same ids follow on each other."""
        number = 0
        for ids in _pieces(columns, self.columns):
            for block in _pieces(rows, self.rows):
                yield number, ids, block
                number += 1


def cut_of(
    hidden: Tensor,
    shard: Shard,
    *,
    tile_rows: int = TILE_ROWS,
    tile_bytes: int | None = None,
    kept_bytes: int | None = None,
) -> Cut:
    """Return the cut whose tiles have at most ``tile_bytes`` (at least one logit), and keep ``kept_bytes`` of them.

    None stands for TILE_BYTES of the device and for KEPT_BYTES.
    """
    kept_bytes = KEPT_BYTES if kept_bytes is None else kept_bytes
    if tile_bytes is None:
        tile_bytes = TILE_BYTES.get(hidden.device.type, TILE_BYTES["cuda"])
    rows = max(1, min(len(hidden), tile_rows))
    columns = max(1, min(shard.counted, tile_bytes // (rows * hidden.element_size())))
    columns -= columns % ALIGNED if columns > ALIGNED else 0
    tiles = -(-len(hidden) // rows) * -(-shard.counted // columns)
    kept = min(tiles, kept_bytes // (rows * columns * hidden.element_size()))
    return Cut(rows, columns, kept if torch.is_grad_enabled() else 0)


class TiledVocabularyLoss(torch.autograd.Function):
    """(hidden, table, bias, targets, shard, cut, pointwise) -> (losses (M,), correct (M,))."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        bias: Tensor,
        targets: Tensor,
        shard: Shard,
        cut: Cut,
        pointwise: Pointwise,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        local = targets - shard.first
        own = nothing_known(hidden.new_empty(3, len(hidden), dtype=wide))
        of_tile = torch.empty_like(own)
        kept = hidden.new_empty(cut.kept, cut.rows * cut.columns)
        scratch = hidden.new_empty(cut.rows * cut.columns)
        for number, ids, block in cut.tiles(len(hidden), shard.counted):
            products = _shaped(kept[number] if number < cut.kept else scratch, block, ids)
            torch.mm(hidden[block], table[ids].T, out=products)
            pointwise.know(products, bias[ids], local[block] - ids.start, of_tile[:, block])
            own[:, block] = join_parts(torch.stack([own[:, block], of_tile[:, block]]))
        most, total, of_target = join_parts(gather_parts(own, shard.ranks))
        logarithm = total.log()
        losses = (most - of_target) + logarithm
        # The table is saved as the parameter that it is: ZeRO-3 frees and refills its storage in between.
        ctx.save_for_backward(hidden, table, bias, local, torch.stack([most, logarithm, losses]), kept)
        ctx.shard, ctx.cut, ctx.pointwise = shard, cut, pointwise
        correct = of_target >= most
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        hidden, table, bias, local, whole, kept = ctx.saved_tensors
        shard, cut = ctx.shard, ctx.cut
        wants_hidden, wants_table, wants_bias = ctx.needs_input_grad[:3]
        scale = upstream.to(hidden.dtype)
        scaled = hidden * scale[:, None]
        of_hidden = torch.zeros_like(hidden, dtype=whole.dtype) if wants_hidden else None
        of_table = _Rows(table, shard.counted, len(hidden)) if wants_table else None
        of_bias = _Rows(bias, shard.counted, len(hidden)) if wants_bias else None
        scratch = hidden.new_empty(cut.rows * cut.columns)
        for number, ids, block in cut.tiles(len(hidden), shard.counted):
            difference = products = _shaped(scratch, block, ids)
            if number < cut.kept:
                products = _shaped(kept[number], block, ids)
            else:
                torch.mm(hidden[block], table[ids].T, out=products)
            ctx.pointwise.differentiate(
                products, bias[ids], local[block] - ids.start, whole[:, block], difference
            )
            if of_hidden is not None:
                _add_product(of_hidden[block], difference, table[ids])
            if of_table is not None:
                of_table.add_product(difference.T, scaled[block], ids, block)
            if of_bias is not None:
                of_bias.add_product(difference.T, scale[block], ids, block)
        if of_hidden is not None:
            if shard.ranks is not None and of_hidden.numel():
                dist.all_reduce(of_hidden, group=shard.ranks)
            of_hidden = of_hidden.mul_(upstream[:, None]).to(hidden.dtype)
        return (
            of_hidden,
            None if of_table is None else of_table.gradient,
            None if of_bias is None else of_bias.gradient,
            *(None,) * 4,
        )


class _Rows:
    """The gradient of a table, finished a slice of rows at a time; padding, and all without positions, is zero."""

    def __init__(self, table: Tensor, counted: int, positions: int) -> None:
        self.gradient = torch.empty_like(table)
        self.gradient[counted if positions else 0 :] = 0
        self._positions = positions
        self._sum: Tensor | None = None  # in float32 at least, of the slice that is not finished

    def add_product(self, left: Tensor, right: Tensor, ids: slice, block: slice) -> None:
        """Add ``left @ right``, what the positions ``block`` do to rows ``ids``."""
        first, last = block.start == 0, block.stop == self._positions
        if first and last:
            torch.matmul(left, right, out=self.gradient[ids])
            return
        if first:
            wide = torch.promote_types(self.gradient.dtype, torch.float32)
            self._sum = torch.zeros_like(self.gradient[ids], dtype=wide)
        assert self._sum is not None
        _add_product(self._sum, left, right)
        if last:
            self.gradient[ids] = self._sum


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``, which may be wider than they are."""
    if total.dtype == left.dtype and right.ndim == 2:
        total.addmm_(left, right)
    else:
        total += left @ right


def _shaped(memory: Tensor, block: slice, ids: slice) -> Tensor:
    """(positions, ids) out of ``memory``: one that is made anew costs a page fault for every 4 KiB."""
    rows, columns = block.stop - block.start, ids.stop - ids.start
    return memory[: rows * columns].view(rows, columns)


def _pieces(length: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``length``."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
