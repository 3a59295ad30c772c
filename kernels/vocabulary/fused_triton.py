"""The part between the products of the vocabulary loss as two Triton kernels; tiles.py calls them.

With x a tile's product, b the bias, z = x + b in float32, columns v of the tile and target t of row i:

    know            m_i = max_v z_iv      s_i = sum_v exp(z_iv - m_i)      t_i = z_it, -inf where t is no column
    differentiate   d_iv = exp((z_iv - m_i) - log s_i)      d_it = expm1(-loss_i)

``know`` reads a row once, a block of columns at a time, with a maximum that grows; one program has a row, so the
order of its additions is fixed. In ``differentiate`` m, log s and loss are those of the whole vocabulary, of
which this tile is a part; d may overwrite x. Row numbers are 64-bit: rows x columns passes 2^31 at 8,590 rows of
250,002 ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.vocabulary.shard import Shard
from kernels.vocabulary.tiles import Pointwise, tiled_vocabulary_loss

if TYPE_CHECKING:
    from kernels.aot import AotVariant

BLOCK = 4096  # columns
WARPS = 8


@triton.jit
def know_kernel(
    products, bias, targets, known, columns, stride_products, stride_known, BLOCK: tl.constexpr
):  # fmt: skip
    """known (3, rows) = m, s, t."""
    wide = known.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    products += row * stride_products
    most = tl.full((), -float("inf"), wide)
    total = tl.zeros((), wide)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        z = tl.load(products + column, inside, -float("inf")).to(wide) + tl.load(
            bias + column, inside, 0.0
        ).to(wide)
        larger = tl.maximum(most, tl.max(z, 0))
        total = total * tl.exp(most - larger) + tl.sum(tl.exp(z - larger), 0)
        most = larger
    target = tl.load(targets + row)
    here = (target >= 0) & (target < columns)
    of_target = tl.load(products + target, here, -float("inf")).to(wide) + tl.load(
        bias + target, here, 0.0
    ).to(wide)
    tl.store(known + row, most)
    tl.store(known + stride_known + row, total)
    tl.store(known + 2 * stride_known + row, of_target)


@triton.jit
def differentiate_kernel(
    products, bias, targets, whole, of_targets, out, columns, stride_products, stride_whole, stride_out,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out (rows, columns) = d; ``whole`` (2 or more, rows) begins with m and log s, ``of_targets`` (rows,) is d_it."""
    wide = whole.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    z = tl.load(products + row * stride_products + column, inside, -float("inf")).to(wide) + tl.load(
        bias + column, inside, 0.0
    ).to(wide)
    most = tl.load(whole + row)
    logarithm = tl.load(whole + stride_whole + row)
    difference = tl.exp((z - most) - logarithm)
    difference = tl.where(column == tl.load(targets + row), tl.load(of_targets + row), difference)
    tl.store(out + row * stride_out + column, difference.to(out.dtype.element_ty), inside)


def know(products: Tensor, bias: Tensor, targets: Tensor, known: Tensor) -> None:
    """Launch ``know_kernel``, one program for a row; see tiles.Pointwise."""
    rows, columns = products.shape
    know_kernel[(rows,)](
        products, bias, targets, known, columns, products.stride(0), known.stride(0), BLOCK, num_warps=WARPS
    )


def differentiate(products: Tensor, bias: Tensor, targets: Tensor, whole: Tensor, out: Tensor) -> None:
    """Launch ``differentiate_kernel``, one program for a block of a row; see tiles.Pointwise."""
    rows, columns = products.shape
    differentiate_kernel[(rows, triton.cdiv(columns, BLOCK))](
        products, bias, targets, whole, torch.expm1(-whole[2]), out, columns, products.stride(0),
        whole.stride(0), out.stride(0), BLOCK, num_warps=WARPS,
    )  # fmt: skip


def vocabulary_loss_triton(
    hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, shard: Shard, **limits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total (), losses (M,), correct (M,)); ``limits`` are those of ``tiles.cut_of``."""
    bias, pointwise = bias.contiguous(), Pointwise(know, differentiate)
    return tiled_vocabulary_loss(hidden, table, bias, targets, weights, shard, pointwise, **limits)


def aot_variants() -> Iterator[AotVariant]:
    """The kernels as they are launched for tiles whose columns are a multiple of 16, which all but the last are."""
    from kernels.aot import AotVariant

    for dtype in ("bf16", "fp16", "fp32"):
        tile = {"products": f"*{dtype}", "bias": f"*{dtype}", "targets": "*i64"}
        yield AotVariant(
            f"know_{dtype}",
            know_kernel,
            {**tile, "known": "*fp32", "columns": "i32", "stride_products": "i32", "stride_known": "i32",
             "BLOCK": "constexpr"},
            {"BLOCK": BLOCK},
            divisible=("products", "bias", "columns", "stride_products"),
            warps=WARPS,
        )  # fmt: skip
        yield AotVariant(
            f"differentiate_{dtype}",
            differentiate_kernel,
            {**tile, "whole": "*fp32", "of_targets": "*fp32", "out": f"*{dtype}", "columns": "i32",
             "stride_products": "i32", "stride_whole": "i32", "stride_out": "i32", "BLOCK": "constexpr"},
            {"BLOCK": BLOCK},
            divisible=("products", "bias", "out", "columns", "stride_products", "stride_out"),
            warps=WARPS,
        )  # fmt: skip
