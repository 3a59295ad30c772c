"""A table that is looked up and that the head reads too: its two gradients as one.

On a CPU autograd would fill a second whole table with zeros for the rows that were looked up, and add the two: for
250,000 rows 384 MB that are written to carry a few thousand vectors. The head's gradient, which has the whole table's
size in any case, is there first; the vectors are added to it where it lies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class TiedTable(nn.Module):
    """What has a table ``weight`` (V, D)."""

    weight: Tensor
    _link: Tensor | None = None  # between the look-up of a forward and its reading

    def look_up(self, ids: Tensor) -> Tensor:
        """(R,) -> (R, D) rows of the table, before the head reads it."""
        self._link = None
        if not _joined(self.weight):
            return F.embedding(ids, self.weight)
        self._uses = _Uses()
        rows, self._link = _LookUp.apply(ids, self.weight, self._uses)
        return rows

    def read(self) -> Tensor:
        """(V, D) the table, for the head of the same forward.

        The gradient that comes back is written to: it must be of this reading alone, as that of a product is.
        """
        link, self._link = self._link, None
        if link is None:
            return self.weight
        table: Tensor = _Read.apply(self.weight, link, self._uses)
        return table


class TokenTable(nn.Embedding, TiedTable):
    """The table of a model that is not cut."""

    def forward(self, ids: Tensor) -> Tensor:
        """(R,) -> (R, D)."""
        return self.look_up(ids)


def _joined(table: Tensor) -> bool:
    """Whether there is something to save. Narrow numbers would round at each of many small vectors."""
    return table.device.type == "cpu" and torch.finfo(table.dtype).bits >= 32 and torch.is_grad_enabled()


class _Uses:
    """The look-up and the reading of one forward: the gradient of the reading until the look-up takes it over."""

    gradient: Tensor | None = None


class _LookUp(torch.autograd.Function):
    """Gives an empty tensor too. Whoever takes it comes first in the backward, and the look-up after it in any case."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, uses: _Uses) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        ctx.uses, ctx.rows = uses, len(table)
        return F.embedding(ids, table), table.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        # Let go of: autograd takes a gradient over that nobody else has, and copies any other.
        whole, ctx.uses.gradient = ctx.uses.gradient, None
        if whole is None:  # the head is not part of this loss
            whole = torch.ops.aten.embedding_dense_backward(upstream, ids, ctx.rows, -1, False)
        else:
            whole.index_add_(0, ids, upstream)
        return None, whole, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, link: Tensor, uses: _Uses) -> Tensor:
        ctx.uses = uses
        return table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        ctx.uses.gradient = gradient.contiguous()
        return None, gradient.new_empty(0), None
