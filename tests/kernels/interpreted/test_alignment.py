"""The Triton kernels of the alignment loss, interpreted, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed import ProcessGroup

from kernels.alignment.fused_triton import Fused
from tests.kernels.alignment_pools import (
    TOLERANCES,
    Pool,
    Result,
    assert_no_worse_than_torch,
    make_pool,
    rounded,
    solve,
)
from tests.ranks import run_on_ranks

SMALL = Fused(tile=7, kept_bytes=0)  # so that a small pool has several tiles
OPTIONS: dict[str, dict[str, Any]] = {
    "margin": {"additive_margin": 0.3},
    "prefixes": {"additive_margin": 0.1, "widths": ((3, 0.5), (17, 1.0))},
}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_dtype_scale_and_option_is_no_worse_than_torch(
    dtype: torch.dtype, scale: float, options: str
) -> None:
    assert_no_worse_than_torch(make_pool(14, 5, width=20), scale, "triton", dtype, **OPTIONS[options])


@pytest.mark.parametrize(
    ("pairs", "hard_negatives", "groups"),
    [
        *(
            (pairs, hard, "some")
            for pairs, hard in ((0, 0), (0, 3), (1, 0), (1, 1), (2, 0), (16, 16), (33, 0))
        ),
        (9, 2, "none"),
        (9, 2, "all"),
    ],
)
def test_every_shape_is_no_worse_than_torch(pairs: int, hard_negatives: int, groups: str) -> None:
    assert_no_worse_than_torch(make_pool(pairs, hard_negatives, groups), 20.0, "triton", torch.float32)


@pytest.mark.parametrize("options", OPTIONS)
def test_tiles_that_end_anywhere_are_no_worse_than_torch(options: str) -> None:
    assert_no_worse_than_torch(make_pool(17, 5, width=18), 20.0, SMALL, torch.bfloat16, **OPTIONS[options])


def test_whole_tiles_are_no_worse_than_torch() -> None:
    assert_no_worse_than_torch(make_pool(128, groups="some", width=64), 20.0, "triton", torch.bfloat16)


def test_any_stride_is_accepted() -> None:
    pool = make_pool(9, 4)
    queries, keys = torch.randn(9, 12), pool.keys.float().T.contiguous().T
    strided = pool._replace(queries=queries[:, ::2], keys=keys)
    result, truth = solve(strided, 5.0, "triton", dtype=torch.float32), solve(strided, 5.0, "reference")
    torch.testing.assert_close(result.of_queries.double(), truth.of_queries, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.of_keys.double(), truth.of_keys, rtol=1e-5, atol=1e-5)


def test_twice_is_bitwise_the_same() -> None:
    pool = make_pool(17, 9, width=16)
    first, second = (solve(pool, 20.0, SMALL, dtype=torch.bfloat16) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_row_without_negatives_has_loss_and_gradient_zero() -> None:
    result = solve(make_pool(6, groups="all"), 20.0, "triton", dtype=torch.float32)
    for value in result._replace(correct=~result.correct):
        assert not value.any()


@pytest.mark.ranks
@pytest.mark.parametrize("split", [[(5, 0), (3, 2)], [(5, 3), (0, 0), (2, 1)]], ids=str)
def test_ranks_equal_one_process(split: list[tuple[int, int]]) -> None:
    parts = [rounded(make_pool(pairs, hard, "some"), torch.float32) for pairs, hard in split]
    first_key = [sum(map(sum, split[:rank])) for rank in range(len(split))]
    whole = Pool(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    whole = whole._replace(
        positives=torch.cat([part.positives + first for part, first in zip(parts, first_key, strict=True)])
    )

    def of_rank(group: ProcessGroup) -> Result:
        return solve(
            parts[group.rank()], 20.0, "triton", dtype=torch.float32, ranks=group, additive_margin=0.1
        )

    truth = solve(whole, 20.0, "reference", additive_margin=0.1)
    for name, values in zip(
        Result._fields, zip(*run_on_ranks(of_rank, len(split)), strict=True), strict=True
    ):
        joined = torch.stack(values).sum(0) if values[0].ndim == 0 else torch.cat(values)
        true = getattr(truth, name).double()
        error = float((joined.double() - true).norm() / true.norm())
        assert joined.shape == true.shape and error <= 5e-6, f"{name}: {error}"
