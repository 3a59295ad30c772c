"""Random numbers of tensor ranks: equal where they compute the same, different where each has rows of its own.

torch's own generator is given the same seed on all tensor ranks of a data rank, and all of them draw from it at the
same places, so dropout on what every rank holds is the same on every rank. Where a rank holds rows of its own the
dropout has a stream of its own, keyed by a number from the common one and by the rank: the common one goes on as
before, and a layer that is computed again for its gradient draws the same again.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from model.parallel.topology import Axis


class OwnRowsDropout(nn.Module):
    """Dropout with probability ``p`` on a tensor of which every rank of ``axis`` holds other rows."""

    def __init__(self, p: float, axis: Axis) -> None:
        super().__init__()
        self.p = p
        self.axis = axis

    def forward(self, own: Tensor) -> Tensor:
        """Zeros with probability p, the others divided by 1 - p; in training only."""
        if not self.training or self.p == 0:
            return own
        generator = own_generator(self.axis, own.device)
        kept = torch.empty_like(own).bernoulli_(1 - self.p, generator=generator)
        return own * kept.div_(1 - self.p)


def own_generator(axis: Axis, device: torch.device) -> torch.Generator:
    """A generator of this rank alone; takes one number from torch's own of the CPU."""
    common = int(torch.randint(2**62, ()))
    key = hashlib.sha256(f"{common}:{axis.rank}".encode()).digest()[:8]
    return torch.Generator(device).manual_seed(int.from_bytes(key, "little") >> 1)
