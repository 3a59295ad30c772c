"""The vocabulary loss by torch's own F.linear_cross_entropy, in chunks of rows that fit the memory budget.

Exact in float32 and float64 alone: for bfloat16 it returns a loss rounded to bfloat16, off by several hundredths.
Its automatic chunks are not used: at 250,002 ids they are two to four rows, twenty times slower than dense. It
knows neither a table that is cut over ranks nor which rows are right: for these the logits are made once more.

Other libraries stay out: liger-kernel's gradients are made in the forward for rows of equal weight, here each
row has the weight of its task; cut-cross-entropy as published has no bias and drops small gradients.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from kernels.implementation import ImplementationUnavailable
from kernels.vocabulary.shard import Shard
from kernels.vocabulary.streaming import vocabulary_loss_streaming

CHUNK_BYTES: Final = 128 * 2**20  # of logits


def vocabulary_loss_torch(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Tensor,
    shard: Shard,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total (), losses (M,), correct (M,)); ImplementationUnavailable where it would not be exact."""
    if hidden.dtype not in (torch.float32, torch.float64):
        raise ImplementationUnavailable(
            f"vocabulary_loss: the 'torch' implementation rounds the losses of {hidden.dtype}; train in float32, or"
            " choose 'streaming'"
        )
    if shard != Shard(0, len(table), None):
        raise ImplementationUnavailable(
            "vocabulary_loss: the 'torch' implementation needs the whole table on each rank; choose 'streaming'"
        )
    with torch.no_grad():
        *_, correct = vocabulary_loss_streaming(hidden, table, bias, targets, weights, shard)
    rows = max(1, chunk_bytes // (len(table) * table.element_size()))
    function: Any = functional.linear_cross_entropy
    losses: Tensor = function(
        hidden,
        table,
        targets,
        linear_bias=bias,
        reduction="none",
        # Without positions it has no chunks, and the dense form has nothing to hold.
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows) if len(hidden) else None,
    )
    return weights.to(losses.dtype) @ losses, losses.detach(), correct
