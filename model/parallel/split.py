"""Split: how one parameter is cut over the tensor ranks. The attribute ``tensor_split`` of a parameter that is."""

from __future__ import annotations

from typing import NamedTuple


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
