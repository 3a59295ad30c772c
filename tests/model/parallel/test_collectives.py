"""Each collective gives the tensor and the gradient that its row of the table says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.parallel import collectives
from model.parallel.topology import Axis
from tests.ranks import run_on_ranks

ROWS, WIDTH = 12, 3
KINDS = {
    "spread": ("whole", "whole", "partial", "whole"),
    "summed": ("partial", "whole", "whole", "whole"),
    "summed_own": ("partial", "own", "own", "whole"),
    "joined": ("own", "whole", "whole", "own"),
}  # in, out; gradient in, gradient out


def tensor(kind: str, rank: int, ranks: int, seed: int) -> tuple[Tensor, Tensor]:
    """What this rank holds of a tensor (ROWS, WIDTH), and the tensor itself."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(ranks, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    if kind == "partial":
        return parts[rank], parts.sum(0)
    rows = ROWS // ranks
    return (parts[0] if kind == "whole" else parts[0, rank * rows : (rank + 1) * rows]), parts[0]


def held(kind: str, whole: Tensor, rank: int, ranks: int) -> Tensor:
    rows = ROWS // ranks
    return whole if kind == "whole" else whole[rank * rows : (rank + 1) * rows]


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_forward_and_backward_are_those_of_the_table(ranks: int) -> None:
    def of_rank(group: Any) -> None:
        axis = Axis.of(group)
        for name, (given, returned, gradient_given, gradient_returned) in KINDS.items():
            function: Callable[[Tensor, Axis], Tensor] = getattr(collectives, name)
            mine, whole = tensor(given, axis.rank, ranks, seed=1)
            mine = mine.clone().requires_grad_()
            out = function(mine, axis)
            torch.testing.assert_close(out, held(returned, whole, axis.rank, ranks))
            outer, whole_outer = tensor(gradient_given, axis.rank, ranks, seed=2)
            out.backward(outer)
            torch.testing.assert_close(mine.grad, held(gradient_returned, whole_outer, axis.rank, ranks))
            assert ranks > 1 or out is mine

    run_on_ranks(of_rank, ranks)


@pytest.mark.ranks
def test_nothing_passes_where_there_are_no_rows() -> None:
    def of_rank(group: Any) -> None:
        for name in KINDS:
            mine = torch.empty(0, WIDTH, requires_grad=True)
            out = getattr(collectives, name)(mine, Axis.of(group))
            assert out.shape == (0, WIDTH)
            out.sum().backward()
            assert mine.grad is not None and mine.grad.shape == (0, WIDTH)

    run_on_ranks(of_rank, 2)
