"""The vocabulary loss as dense torch: the definition that every other implementation is held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def vocabulary_loss_reference(
    hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (losses (M,), correct (M,)); holds the (M, V) logits several times over, in float32 at least."""
    logits = functional.linear(hidden, table, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(logits, targets, reduction="none")
    with torch.no_grad():
        correct = logits.gather(1, targets[:, None])[:, 0] >= logits.amax(1)
    return losses, correct
