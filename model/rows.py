"""Rows picked out of a stream, with a gradient that is a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def pick(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]`` of rows that are all different: of such the gradient is a copy, where indexing's own sorts."""
    picked: Tensor = _Pick.apply(values, rows)
    return picked


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = values.shape
        return values.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return outer.new_zeros(ctx.shape).index_copy_(0, rows, outer), None
