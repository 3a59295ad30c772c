"""A table of vectors that is cut over tensor ranks by its ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.parallel.collectives import summed, summed_own
from model.parallel.topology import Axis
from model.tied import TiedTable


class VocabularyEmbedding(TiedTable):
    """This rank's ceil(V / ranks) rows; the last ones of the last ranks may be filled up with rows that no id names."""

    def __init__(self, vocabulary: int, width: int, axis: Axis, *, rows: bool) -> None:
        super().__init__()
        self.axis = axis
        self.rows = rows
        self.own = -(-vocabulary // axis.size)
        self.weight = nn.Parameter(torch.empty(self.own, width))

    def forward(self, ids: Tensor) -> Tensor:
        """(R,) ids -> their vectors (R, D), or (R / ranks, D); each rank adds those that it has."""
        places = ids - self.axis.rank * self.own
        elsewhere = (places < 0) | (places >= self.own)
        found = self.look_up(places.masked_fill(elsewhere, 0))
        partial = found.masked_fill(elsewhere[:, None], 0)
        return summed_own(partial, self.axis) if self.rows else summed(partial, self.axis)
