"""The square of a gradient's norm, in float64: a float32 norm of a table of 96 million weights is off by 1 %."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 24}  # elements that are float64 at a time


def square_of(gradient: Tensor) -> Tensor:
    """() float64, the sum of squares of a tensor of any shape.

    A part at a time, so that what is wide stays in a processor's cache, and is little on a GPU.
    """
    flat = gradient.reshape(-1)
    at_once = _AT_ONCE["cpu" if gradient.device.type == "cpu" else "cuda"]
    wide = flat.new_empty(min(at_once, len(flat)), dtype=torch.float64)
    parts = (wide[: len(part)].copy_(part) for part in flat.split(at_once))
    return torch.stack([part.dot(part) for part in parts]).sum()
