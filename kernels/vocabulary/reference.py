"""The vocabulary loss as dense torch: the definition that every other implementation is held to."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from kernels.vocabulary.shard import Shard


def vocabulary_loss_reference(
    hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, shard: Shard
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total (), losses (M,), correct (M,)); holds the (M, V) logits several times over, in float32 at least.

    Across ranks each gathers the whole table, so that its losses, and the gradient of hidden, are whole; of
    the table only the rank's own rows are its own.
    """
    logits = functional.linear(hidden, _of_all_ranks(table, shard), _of_all_ranks(bias, shard))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(logits, targets, reduction="none")
    with torch.no_grad():
        correct = logits.gather(1, targets[:, None])[:, 0] >= logits.amax(1)
    return weights.to(losses.dtype) @ losses, losses.detach(), correct


def _of_all_ranks(own: Tensor, shard: Shard) -> Tensor:
    """This rank's rows among those of all ranks, without padding; gradients reach this rank's alone."""
    if shard.ranks is None:
        return own[: shard.counted]
    every = [torch.empty_like(own) for _ in range(shard.ranks.size())]
    dist.all_gather(every, own.detach().contiguous(), group=shard.ranks)
    counted = torch.tensor([shard.counted], device=own.device)
    dist.all_reduce(counted, group=shard.ranks)
    every[shard.ranks.rank()] = own
    return torch.cat(every)[: int(counted)]
