"""The vocabulary loss in tiles of positions x vocabulary, so that the logits never exist all at once.

With p = softmax(z) and the weight w_i of loss_i:

    d_i = p_i - onehot(target_i)
    d hidden_i = w_i d_i @ table      d table = d^T @ (w * hidden)      d bias = w @ d

Pass 1 keeps three numbers of a row (see shard.py), carried on from tile to tile and put together over ranks at
the end; pass 2 makes d. Both belong to the forward, since the weights are known there: the backward only scales
what is stored, and no collective runs inside autograd. The weight scales rows of ``hidden`` and not d, which is
rounded to the inputs' dtype.

Pass 2 needs the logits again. Those that fit ``KEPT_BYTES`` are kept, so that there are three matrix products as
in the dense form; others are a fourth product. Which of two ways is taken is a matter of the table's gradient:

    bands      some positions at a time go through both passes, and all their logits are kept. Each band adds to the
               whole gradient of the table. Not for gradients that are narrower than their sums (a second table in
               float32 would be needed), nor with so few positions in a band that adding takes longer than a product.
    one band   all positions, the first tiles kept. The vocabulary is the outer loop of pass 2: each row of the
               table's gradient is finished, in float32, before the next is begun, and written once.

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
# Of logits that are not made twice.
KEPT_BYTES = {"cpu": 168 * 2**20, "cuda": 1024 * 2**20}
# Positions from which on another product of their logits would take longer than adding to the table's gradient:
# reading and writing a number of it against that many multiplications and additions.
LEAST_BAND = {"cpu": 64, "cuda": 1024}


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
    """How the logits are cut: into bands of positions, a band into tiles."""

    band: int  # positions
    rows: int  # of a tile
    columns: int
    kept: int  # how many tiles of a band, of the first, are not made again

    def bands(self, positions: int) -> Iterator[slice]:
        """Yield the positions of every band."""
        return _pieces(slice(0, positions), self.band)

    def tiles(self, band: slice, columns: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield number, ids and positions of a band's tiles; all positions of the same ids follow on each other."""
        number = 0
        for ids in _pieces(slice(0, columns), self.columns):
            for block in _pieces(band, self.rows):
                yield number, ids, block
                number += 1


def cut_of(
    hidden: Tensor,
    table: Tensor,
    *,
    wanted: bool,
    tile_rows: int = TILE_ROWS,
    tile_bytes: int | None = None,
    kept_bytes: int | None = None,
    least_band: int | None = None,
) -> Cut:
    """Return the cut whose tiles have at most ``tile_bytes`` (at least one logit), and keep ``kept_bytes`` of them.

    None stands for the constants above, of the device. ``wanted``: there is a second pass. It depends on nothing in
    which ranks may differ: each band is an exchange.
    """
    device = hidden.device.type if hidden.device.type in TILE_BYTES else "cuda"
    tile_bytes = TILE_BYTES[device] if tile_bytes is None else tile_bytes
    kept_bytes = KEPT_BYTES[device] if kept_bytes is None else kept_bytes
    least_band = LEAST_BAND[device] if least_band is None else least_band
    size, ids = hidden.element_size(), len(table)
    band = max(1, len(hidden))
    bands = -(-band * ids * size // max(1, kept_bytes))  # if the logits of each are to be kept
    in_bands = 1 < bands <= band // least_band and size >= 4
    if wanted and in_bands:
        band = -(-band // bands)
    rows = min(band, tile_rows)
    columns = max(1, min(ids, tile_bytes // (rows * size)))
    columns -= columns % ALIGNED if columns > ALIGNED else 0
    tiles = -(-band // rows) * -(-ids // columns)
    kept = tiles if in_bands else min(tiles, kept_bytes // (rows * columns * size))
    return Cut(band, rows, columns, kept if wanted else 0)


def tiled_vocabulary_loss(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Tensor,
    shard: Shard,
    pointwise: Pointwise,
    **limits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total (), losses (M,), correct (M,)), the first differentiable; ``limits`` are those of ``cut_of``."""
    wanted = torch.is_grad_enabled() and any(part.requires_grad for part in (hidden, table, bias))
    cut = cut_of(hidden, table, wanted=wanted, **limits)
    total, losses, correct = _TiledVocabularyLoss.apply(
        hidden, table, bias, targets, weights, shard, pointwise, cut, wanted
    )
    return total, losses, correct


class _TiledVocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        bias: Tensor,
        targets: Tensor,
        weights: Tensor,
        shard: Shard,
        pointwise: Pointwise,
        cut: Cut,
        wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        weights = weights.to(wide)
        local = targets - shard.first
        losses = hidden.new_empty(len(hidden), dtype=wide)
        correct = torch.empty_like(targets, dtype=torch.bool)
        gradients = (
            _Gradients(hidden, table, bias, weights, shard, ctx.needs_input_grad[:3]) if wanted else None
        )
        # Each by itself: together they would be more than a C library keeps from one step to the next.
        kept = [hidden.new_empty(cut.rows * cut.columns) for _ in range(cut.kept)]
        scratch = hidden.new_empty(cut.rows * cut.columns)

        def products_of(number: int, ids: slice, block: slice) -> Tensor:
            memory = kept[number] if number < cut.kept else scratch
            rows, columns = block.stop - block.start, ids.stop - ids.start
            return memory[: rows * columns].view(rows, columns)

        for band in cut.bands(len(hidden)):
            own = nothing_known(hidden.new_empty(3, band.stop - band.start, dtype=wide))
            for number, ids, block in cut.tiles(band, shard.counted):
                products = torch.mm(hidden[block], table[ids].T, out=products_of(number, ids, block))
                rows = slice(block.start - band.start, block.stop - band.start)
                of_tile = torch.empty_like(own[:, rows])
                pointwise.know(products, bias[ids], local[block] - ids.start, of_tile)
                own[:, rows] = join_parts(torch.stack([own[:, rows], of_tile]))
            most, total, of_target = join_parts(gather_parts(own, shard.ranks))
            logarithm = total.log()
            losses[band] = (most - of_target) + logarithm
            correct[band] = of_target >= most
            if gradients is None:
                continue
            whole = torch.stack([most, logarithm, losses[band]])
            for number, ids, block in cut.tiles(band, shard.counted):
                products = products_of(number, ids, block)
                if number >= cut.kept:
                    torch.mm(hidden[block], table[ids].T, out=products)
                rows = slice(block.start - band.start, block.stop - band.start)
                pointwise.differentiate(
                    products, bias[ids], local[block] - ids.start, whole[:, rows], products
                )
                gradients.add(products, ids, block)
        if gradients is not None:
            ctx.save_for_backward(*gradients.finish())
        ctx.mark_non_differentiable(losses, correct)
        return weights @ losses, losses, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors
        # In place: a second table would not fit where this one does. autograd refuses to use them once more then.
        if upstream.device.type != "cpu" or upstream != 1:  # asking a GPU would stop it
            stored = [gradient if gradient is None else gradient.mul_(upstream) for gradient in stored]
        return (*stored, *(None,) * 6)


class _Gradients:
    """The gradients of hidden, table and bias; None stays what is not asked for."""

    def __init__(
        self,
        hidden: Tensor,
        table: Tensor,
        bias: Tensor,
        weights: Tensor,
        shard: Shard,
        asked: tuple[bool, ...],
    ) -> None:
        of_hidden, of_table, of_bias = asked
        self._inputs, self._table, self._weights, self._ranks = hidden, table, weights, shard.ranks
        self._narrow = weights.to(hidden.dtype)
        self._scaled: tuple[slice, Tensor] | None = None  # rows of ``hidden`` with their weights
        self._hidden = torch.zeros_like(hidden, dtype=weights.dtype) if of_hidden else None
        self._dtype = hidden.dtype
        self._of_table = _Rows(table, shard.counted, len(hidden)) if of_table else None
        self._of_bias = _Rows(bias, shard.counted, len(hidden)) if of_bias else None

    def add(self, difference: Tensor, ids: slice, block: slice) -> None:
        """Add what the ``difference`` d of a tile does."""
        if self._hidden is not None:
            _add_product(self._hidden[block], difference, self._table[ids])
        if self._of_table is not None:
            if self._scaled is None or self._scaled[0] != block:
                self._scaled = block, self._inputs[block] * self._narrow[block, None]
            self._of_table.add_product(difference.T, self._scaled[1], ids, block)
        if self._of_bias is not None:
            self._of_bias.add_product(difference.T, self._narrow[block], ids, block)

    def finish(self) -> tuple[Tensor | None, ...]:
        """Put the gradient of hidden together over ranks; return all three."""
        if self._hidden is not None:
            if self._ranks is not None and self._hidden.numel():
                dist.all_reduce(self._hidden, group=self._ranks)
            self._hidden = self._hidden.mul_(self._weights[:, None]).to(self._dtype)
        rows = (self._of_table, self._of_bias)
        return self._hidden, *(None if of_rows is None else of_rows.gradient for of_rows in rows)


class _Rows:
    """The gradient of a table, added up a slice of rows at a time; padding, and all without positions, is zero.

    One that is narrower than its sums is finished a slice at a time.
    """

    def __init__(self, table: Tensor, counted: int, positions: int) -> None:
        self.gradient = torch.empty_like(table)
        self.gradient[counted if positions else 0 :] = 0
        self._positions = positions
        self._wide = torch.promote_types(table.dtype, torch.float32)
        self._sum: Tensor | None = None  # of the slice that is not finished

    def add_product(self, left: Tensor, right: Tensor, ids: slice, block: slice) -> None:
        """Add ``left @ right``, what the positions ``block`` do to rows ``ids``."""
        first, last = block.start == 0, block.stop == self._positions
        own = self.gradient[ids]
        if first and (last or own.dtype == self._wide):
            torch.matmul(left, right, out=own)
        elif own.dtype == self._wide:
            _add_product(own, left, right)
        else:
            if first:
                self._sum = torch.zeros_like(own, dtype=self._wide)
            assert self._sum is not None
            _add_product(self._sum, left, right)
            if last:
                own.copy_(self._sum)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``, which may be wider than they are."""
    if total.dtype != left.dtype:
        total += left @ right
    elif right.ndim == 1:
        total.addmv_(left, right)
    else:
        total.addmm_(left, right)


def _pieces(whole: slice, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``whole``."""
    for start in range(whole.start, whole.stop, size):
        yield slice(start, min(start + size, whole.stop))
