"""Linear layers that are cut over tensor ranks: by columns of the result, or by those of the input.

    column-parallel   y_r = x W_r^T + b_r          every rank all of x, its own part of y
    row-parallel      y   = sum_r x_r W_r^T + b    every rank its own part of x, all of y

One after the other they need one sum over the ranks. With ``rows`` (sequence parallelism) what comes in and what
goes out lies spread over the ranks, each holding its own rows: the sum is then a reduce-scatter, and a gather stands
before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.parallel.collectives import gathered, spread, summed, summed_own
from model.parallel.topology import Axis


class ColumnLinear(nn.Module):
    """Of a layer (O, I) this rank's O / ranks rows of the weight, and as many of the bias."""

    def __init__(self, inputs: int, outputs: int, axis: Axis, *, rows: bool) -> None:
        super().__init__()
        self.axis = axis
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(outputs // axis.size, inputs))
        self.bias = nn.Parameter(torch.empty(outputs // axis.size))

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, I), or (R / ranks, I) -> (R, O / ranks)."""
        whole = gathered(hidden, self.axis) if self.rows else spread(hidden, self.axis)
        return F.linear(whole, self.weight, self.bias)


class RowLinear(nn.Module):
    """Of a layer (O, I) this rank's I / ranks columns of the weight, and the whole bias."""

    def __init__(self, inputs: int, outputs: int, axis: Axis, *, rows: bool) -> None:
        super().__init__()
        self.axis = axis
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(outputs, inputs // axis.size))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, own: Tensor) -> Tensor:
        """(R, I / ranks) -> (R, O), or (R / ranks, O)."""
        partial = F.linear(own, self.weight)
        return (summed_own(partial, self.axis) if self.rows else summed(partial, self.axis)) + self.bias
