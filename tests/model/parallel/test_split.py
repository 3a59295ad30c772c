"""The parts of all ranks are the whole parameter, each row of it once."""

from __future__ import annotations

import pytest
import torch

from model.parallel.split import Split, split_of, whole_shape


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("split", "shape"),
    [
        (Split(0, 8), (8, 3)),
        (Split(0, 101), (101,)),
        (Split(0, 5), (5, 2)),  # fewer rows than ranks: the last hold nothing
        (Split(1, 24), (2, 24)),
        (Split(0, 72, blocks=3), (72, 2)),
        (Split(1, 21, blocks=3), (2, 21)),
    ],
)
def test_what_the_ranks_take_is_every_row_once_and_zeros_fill_it_up(
    split: Split, shape: tuple[int, ...], ranks: int
) -> None:
    whole = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    again = torch.zeros_like(whole)
    for rank in range(ranks):
        own = split.take(whole, rank, ranks)
        assert own.shape[split.dimension] == split.own_size(ranks)
        filled = torch.zeros_like(own)
        for part in split.parts(rank, ranks):
            there = own.narrow(split.dimension, part.own, part.length)
            again.narrow(split.dimension, part.whole, part.length).add_(there)
            filled.narrow(split.dimension, part.own, part.length).fill_(1)
        assert not own[filled == 0].any()
    assert torch.equal(again, whole)


def test_a_fused_projection_is_cut_in_each_of_its_blocks() -> None:
    queries, keys, values = torch.arange(12).view(3, 4)
    own = Split(0, 12, blocks=3).take(torch.cat([queries, keys, values]), 1, 2)
    assert own.tolist() == [*queries[2:], *keys[2:], *values[2:]]


def test_a_parameter_without_a_split_is_whole_although_every_tensor_has_a_method_of_that_name() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    assert split_of(parameter) is None and whole_shape(parameter) == (4, 3)
    parameter.tensor_split = Split(0, 7)  # type: ignore[assignment, method-assign]
    assert split_of(parameter) == Split(0, 7) and whole_shape(parameter) == (7, 3)
