"""The vocabulary loss in tiles, with torch for the part between the products.

That part is float32 (float64 for float64). On a CPU it runs over strips of rows that stay in the processor's
cache, which costs a fraction of what the dense form spends there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.vocabulary.shard import Shard
from kernels.vocabulary.tiles import Pointwise, tiled_vocabulary_loss

STRIP_BYTES = 2**21  # for each thread of a CPU; with smaller ones the threads wait for each other too often
STRIP_BYTES_OF_DEVICE = 2**26


def vocabulary_loss_streaming(
    hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, shard: Shard, **limits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total (), losses (M,), correct (M,)); ``limits`` are those of ``tiles.cut_of``."""
    pointwise = Pointwise(_know, _differentiate)
    return tiled_vocabulary_loss(hidden, table, bias, targets, weights, shard, pointwise, **limits)


def _know(products: Tensor, bias: Tensor, targets: Tensor, known: Tensor) -> None:
    bias = bias.to(known.dtype)
    for rows in _strips(products):
        strip = products[rows] + bias
        most = torch.amax(strip, 1, out=known[0, rows])
        torch.sum(strip.sub_(most[:, None]).exp_(), 1, out=known[1, rows])
    at, inside = _places(targets, products)
    of_target = products.gather(1, at[:, None])[:, 0] + bias[at]
    known[2] = of_target.masked_fill_(~inside, -torch.inf)


def _differentiate(products: Tensor, bias: Tensor, targets: Tensor, whole: Tensor, out: Tensor) -> None:
    most, logarithm, losses = whole
    bias = bias.to(whole.dtype)
    for rows in _strips(products):
        if out.dtype == whole.dtype:
            strip = torch.add(products[rows], bias, out=out[rows])
        else:
            strip = products[rows] + bias
        strip.sub_(most[rows, None]).sub_(logarithm[rows, None]).exp_()
        if out.dtype != whole.dtype:
            out[rows] = strip
    at, inside = _places(targets, products)
    # p - 1 without cancellation, p being exp(-loss).
    hit = torch.expm1(-losses).to(out.dtype)
    out.scatter_(1, at[:, None], hit.where(inside, out.gather(1, at[:, None])[:, 0])[:, None])


def _places(targets: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (rows,) of the targets, any where they are not among these ids, and whether they are."""
    inside = (targets >= 0) & (targets < products.shape[1])
    return targets.clamp(0, products.shape[1] - 1), inside


def _strips(products: Tensor) -> Iterator[slice]:
    """Yield slices of rows whose float32 part is small enough."""
    of_row = products.shape[1] * torch.promote_types(products.dtype, torch.float32).itemsize
    on_cpu = products.device.type == "cpu"
    rows = max(1, (STRIP_BYTES * torch.get_num_threads() if on_cpu else STRIP_BYTES_OF_DEVICE) // of_row)
    for start in range(0, len(products), rows):
        yield slice(start, start + rows)
