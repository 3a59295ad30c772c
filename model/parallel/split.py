"""Split: how one parameter is cut over the tensor ranks. The attribute ``tensor_split`` of a parameter that is."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """Rows of the whole parameter that a rank holds: ``length`` from ``whole`` on, which lie at ``own`` in its part."""

    whole: int
    own: int
    length: int


class Split(NamedTuple):
    """A parameter that every tensor rank holds a part of; one without a split is whole on every rank.

    Along ``dimension`` the whole parameter is ``blocks`` blocks of equal length end to end (queries, keys and values
    of a fused projection: 3), and rank r of t holds the r-th of t equal parts of each block. Where the length of a
    block is no multiple of t, the last parts are filled up with rows that nothing reads, so that all parts are equal;
    they are not in a checkpoint.
    """

    dimension: int
    size: int  # of the whole parameter along the dimension, without what fills it up
    blocks: int = 1

    def own_size(self, ranks: int) -> int:
        """Length of a rank's part along the dimension, what fills it up included."""
        return self.blocks * -(-self.size // self.blocks // ranks)

    def parts(self, rank: int, ranks: int) -> list[Part]:
        """What rank ``rank`` of ``ranks`` holds, block by block, without what fills it up."""
        length = self.size // self.blocks
        own = -(-length // ranks)
        first, last = min(rank * own, length), min((rank + 1) * own, length)
        return [Part(block * length + first, block * own, last - first) for block in range(self.blocks)]

    def take(self, whole: Tensor, rank: int, ranks: int) -> Tensor:
        """This rank's part of the whole parameter, a copy; zeros fill it up."""
        shape = list(whole.shape)
        shape[self.dimension] = self.own_size(ranks)
        own = whole.new_zeros(shape)
        for part in self.parts(rank, ranks):
            there = whole.narrow(self.dimension, part.whole, part.length)
            own.narrow(self.dimension, part.own, part.length).copy_(there)
        return own


def split_of(parameter: Tensor) -> Split | None:
    """How ``parameter`` is cut; None if this rank holds it whole.

    Not getattr with a default: every tensor has a method of that name.
    """
    split = parameter.tensor_split
    return split if isinstance(split, Split) else None


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of the whole parameter that ``parameter`` is, or is a rank's part of."""
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves its shards without shape
    split = split_of(parameter)
    if split is None:
        return shape
    return (*shape[: split.dimension], split.size, *shape[split.dimension + 1 :])
