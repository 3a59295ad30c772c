"""The alignment loss over ranks: equal to one process with the whole pool, and never a hang."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed import ProcessGroup

from kernels.alignment import alignment_loss
from tests.kernels.alignment_pools import Pool, Result, assert_equal, make_pool, solve
from tests.ranks import run_on_ranks

IMPLEMENTATIONS = ("reference", "streaming")

# Pairs and hard negatives of each rank.
SPLITS = [
    [(7, 2)],
    [(5, 0), (3, 0)],
    [(6, 1), (0, 0)],
    [(5, 3), (9, 0), (0, 2)],
    [(0, 0), (0, 0), (4, 0)],
    [(1, 0), (4, 2), (0, 0), (2, 1)],
    [(0, 0), (0, 0)],
]


def over_ranks(split: list[tuple[int, int]], implementation: str, **options: Any) -> tuple[Result, Result]:
    """Return what the ranks find, joined, and what one process finds."""
    parts = [make_pool(pairs, hard, "some") for pairs, hard in split]
    first_key = [sum(map(sum, split[:rank])) for rank in range(len(split))]
    whole = Pool(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    whole = whole._replace(
        positives=torch.cat([part.positives + first for part, first in zip(parts, first_key, strict=True)])
    )

    def of_rank(group: ProcessGroup) -> Result:
        return solve(parts[group.rank()], 20.0, implementation, ranks=group, **options)

    results = run_on_ranks(of_rank, len(split))
    joined = Result(
        *(
            torch.stack(values).sum(0) if values[0].ndim == 0 else torch.cat(values)
            for values in zip(*results, strict=True)
        )
    )
    return joined, solve(whole, 20.0, "reference", **options)


@pytest.mark.ranks
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_ranks_equal_one_process(split: list[tuple[int, int]], implementation: str) -> None:
    assert_equal(*over_ranks(split, implementation))


@pytest.mark.ranks
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("split", SPLITS[3:5], ids=str)
def test_ranks_equal_one_process_with_margin_and_prefixes(
    split: list[tuple[int, int]], implementation: str
) -> None:
    assert_equal(
        *over_ranks(split, implementation, additive_margin=0.2, widths=((2, 0.5), (5, 1.0))), tolerance=1e-11
    )


@pytest.mark.ranks
def test_a_rank_that_wants_no_gradient_does_not_hang_the_others() -> None:
    pool = make_pool(4)

    def of_rank(group: ProcessGroup) -> float:
        with torch.set_grad_enabled(group.rank() == 0):
            loss = alignment_loss(
                pool.queries.clone().requires_grad_(),
                *pool[1:3],
                torch.tensor(20.0),
                query_groups=pool.query_groups,
                key_groups=pool.key_groups,
                weights=pool.weights,
                ranks=group,
                implementation="streaming",
            )
        return float(loss.total.detach())

    first, second = run_on_ranks(of_rank, 2, timeout=30)
    assert first == second
