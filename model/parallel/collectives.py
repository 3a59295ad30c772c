"""What passes between the ranks of an axis, in pairs: each forward and the backward that belongs to it.

``whole`` means that every rank holds the same tensor, ``own`` that each holds its own rows of one, ``partial`` that
the tensor is the sum of what the ranks hold.

    function      forward            backward
    spread        whole -> whole     partial -> whole   all-reduce      Megatron's f (Shoeybi et al., 2019)
    summed        partial -> whole   all-reduce         whole -> whole  Megatron's g
    summed_own    partial -> own     reduce-scatter     own -> whole    all-gather       (Korthikanti et al., 2022)
    joined        own -> whole       all-gather         whole -> own    this rank's rows

The first three enclose a part of the model that is cut over the ranks, and so does the gather that stands before a
column-parallel layer (linear.py); what comes out of ``joined`` goes where every rank computes the same. At size 1
every one of them returns its argument. Rows lie in the first dimension, as many on every rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.parallel.topology import Axis


def spread(whole: Tensor, axis: Axis) -> Tensor:
    """(..., D) whole -> the same; each rank's use of it gives a part of its gradient."""
    return whole if axis.size == 1 else _Spread.apply(whole, axis)


def summed(partial: Tensor, axis: Axis) -> Tensor:
    """(..., D) partial -> whole."""
    return partial if axis.size == 1 else _Summed.apply(partial, axis)


def summed_own(partial: Tensor, axis: Axis) -> Tensor:
    """(R, D) partial -> (R / ranks, D) own."""
    return partial if axis.size == 1 else _SummedOwn.apply(partial, axis)


def joined(own: Tensor, axis: Axis) -> Tensor:
    """(R / ranks, D) own -> (R, D) whole, which every rank uses for the same."""
    return own if axis.size == 1 else _Joined.apply(own, axis)


def own_rows(whole: Tensor, axis: Axis) -> Tensor:
    """(R, ...) whole -> (R / ranks, ...) own: a view; of ids and the like, which need no gradient."""
    if axis.size == 1:
        return whole
    rows = len(whole) // axis.size
    return whole[axis.rank * rows : (axis.rank + 1) * rows]


def all_reduce(partial: Tensor, axis: Axis) -> Tensor:
    """A new tensor, the sum over the ranks; outside of any graph."""
    total = partial.clone(memory_format=torch.contiguous_format)
    if axis.size > 1 and total.numel():
        dist.all_reduce(total, group=axis.group)
    return total


def all_gather(own: Tensor, axis: Axis) -> Tensor:
    """(R / ranks, ...) -> (R, ...); outside of any graph."""
    if axis.size == 1:
        return own
    whole = own.new_empty((len(own) * axis.size, *own.shape[1:]))
    if whole.numel():
        dist.all_gather_single(whole, own.contiguous(), group=axis.group)
    return whole


def reduce_scatter(partial: Tensor, axis: Axis) -> Tensor:
    """(R, ...) -> (R / ranks, ...), this rank's rows of the sum; outside of any graph."""
    if axis.size == 1:
        return partial
    own = partial.new_empty((len(partial) // axis.size, *partial.shape[1:]))
    if own.numel():
        dist.reduce_scatter_single(own, partial.contiguous(), group=axis.group)
    return own


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradients[0], ctx.axis), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, axis: Axis) -> Tensor:
        return all_reduce(partial, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _SummedOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return reduce_scatter(partial, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_gather(gradients[0], ctx.axis), None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return all_gather(own, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return own_rows(gradients[0], ctx.axis).contiguous(), None
