"""Memory for a module that was built on the meta device."""

from __future__ import annotations

import torch
from torch import nn


def take_memory(module: nn.Module, device: torch.device) -> None:
    """Give parameters and buffers memory on ``device``, without values.

    As ``to_empty``, which through ``empty_like`` of a meta tensor imports sympy: a second of each start.
    """
    module._apply(lambda each: torch.empty(each.shape, dtype=each.dtype, device=device))
