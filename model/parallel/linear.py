"""Linear layers that are cut over tensor ranks: by columns of the result, or by those of the input.

    column-parallel   y_r = x W_r^T + b_r          every rank all of x, its own part of y
    row-parallel      y   = sum_r x_r W_r^T + b    every rank its own part of x, all of y

One after the other they need one sum over the ranks. With ``rows`` (sequence parallelism) what comes in and what
goes out lies spread over the ranks, each holding its own rows: the sum is then a reduce-scatter, and a gather stands
before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.parallel.collectives import all_gather, reduce_scatter, spread, summed, summed_own
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
        if self.rows:
            projected: Tensor = _GatheredLinear.apply(hidden, self.weight, self.bias, self.axis)
            return projected
        return F.linear(spread(hidden, self.axis), self.weight, self.bias)


class _GatheredLinear(torch.autograd.Function):
    """All-gather, then the linear layer. Kept for the backward are the rank's own rows; it gathers them again."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, weight: Tensor, bias: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        # The weight is saved as the parameter that it is: ZeRO-3 frees and refills its storage in between.
        ctx.save_for_backward(own, weight)
        return F.linear(all_gather(own, axis), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        own, weight = ctx.saved_tensors
        whole = all_gather(own, ctx.axis)
        return reduce_scatter(outer @ weight, ctx.axis), outer.T @ whole, outer.sum(0), None


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
