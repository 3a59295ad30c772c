"""The alignment loss's additive margin, prefixes and temperature, and what never changes it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from kernels.alignment import alignment_loss
from kernels.alignment.streaming import Streaming
from tests.kernels.alignment_pools import Pool, assert_equal, make_pool, solve

IMPLEMENTATIONS = ("reference", "streaming")
WIDTHS = ((2, 0.5), (3, 0.25), (6, 1.0))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_additive_margin_is_taken_from_the_cosine_of_the_positive(implementation: str) -> None:
    pool, scale, margin = make_pool(6, 2, "none"), 7.0, 0.3
    logits = scale * pool.queries @ pool.keys.T
    logits[torch.arange(6), pool.positives] -= scale * margin
    rows = torch.nn.functional.cross_entropy(logits, pool.positives, reduction="none")
    columns = torch.nn.functional.cross_entropy(logits.T[pool.positives], torch.arange(6), reduction="none")
    result = solve(pool, scale, implementation, additive_margin=margin)
    torch.testing.assert_close(result.rows, rows, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(result.columns, columns, rtol=1e-11, atol=1e-12)
    # What counts as found is the cosine alone.
    assert torch.equal(result.correct, solve(pool, scale, implementation).correct)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_prefixes_are_the_weighted_sum_of_separate_losses(implementation: str) -> None:
    pool = make_pool(9, 4)
    result = solve(pool, 20.0, implementation, widths=WIDTHS, additive_margin=0.1)
    parts = []
    for width, _ in WIDTHS:
        queries, keys = (normalize(side[:, :width], dim=1) for side in (pool.queries, pool.keys))
        cut = pool._replace(queries=queries, keys=keys)
        parts.append(solve(cut, 20.0, "reference", additive_margin=0.1))
    for name in ("total", "rows", "columns", "of_scale"):
        expected = sum(weight * getattr(part, name) for (_, weight), part in zip(WIDTHS, parts, strict=True))
        torch.testing.assert_close(getattr(result, name), expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(result.correct, parts[-1].correct)
    # A prefix has no gradient along itself, and coordinates beyond the longest have none at all.
    assert float((result.of_queries * pool.queries).sum(1).abs().max()) < 1e-11
    short = solve(pool, 20.0, implementation, widths=WIDTHS[:2])
    assert (
        short.of_queries[:, :3].any() and not short.of_queries[:, 3:].any() and not short.of_keys[:, 3:].any()
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("widths", [None, WIDTHS], ids=["whole", "prefixes"])
def test_gradients_with_margin_are_those_of_finite_differences(
    implementation: str, widths: tuple[tuple[int, float], ...] | None
) -> None:
    pool = make_pool(4, 2)

    def total(queries: Tensor, keys: Tensor, inverse_temperature: Tensor) -> Tensor:
        return alignment_loss(
            queries,
            keys,
            pool.positives,
            inverse_temperature,
            query_groups=pool.query_groups,
            key_groups=pool.key_groups,
            weights=pool.weights,
            additive_margin=0.2,
            widths=widths,
            implementation=implementation,
        ).total

    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        total, (pool.queries.clone().requires_grad_(), pool.keys.clone().requires_grad_(), scale)
    )


@pytest.mark.parametrize(("pairs", "hard_negatives"), [(0, 0), (0, 3), (1, 0), (1, 2), (33, 5)])
@pytest.mark.parametrize("groups", ["none", "some", "all"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_streaming_prefixes_equal_reference(
    pairs: int, hard_negatives: int, groups: str, scale: float
) -> None:
    pool, options = make_pool(pairs, hard_negatives, groups), {"widths": WIDTHS, "additive_margin": 0.3}
    truth = solve(pool, scale, "reference", **options)
    assert_equal(solve(pool, scale, Streaming((8, 5)), **options), truth, tolerance=1e-10)


@pytest.mark.parametrize("widths", [None, WIDTHS], ids=["whole", "prefixes"])
def test_low_precision_prefixes_lose_only_the_rounding(widths: tuple[tuple[int, float], ...] | None) -> None:
    for dtype, floor in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        pool = make_pool(40, 5)
        pool = pool._replace(queries=pool.queries.to(dtype).double(), keys=pool.keys.to(dtype).double())
        options = {"widths": widths, "additive_margin": 0.1}
        result = solve(pool, 20.0, Streaming((16, 7)), dtype=dtype, **options)
        truth = solve(pool, 20.0, "reference", **options)
        for name in ("rows", "columns"):
            torch.testing.assert_close(
                getattr(result, name).double(), getattr(truth, name), rtol=1e-5, atol=2e-5
            )
        for name in ("of_queries", "of_keys"):
            value, true = getattr(result, name).double(), getattr(truth, name)
            assert float((value - true).norm() / true.norm()) <= floor


def test_a_frozen_temperature_has_no_gradient_and_changes_no_other() -> None:
    pool = make_pool(7)
    queries = pool.queries.clone().requires_grad_()
    frozen = torch.tensor(5.0, dtype=torch.float64)
    loss = alignment_loss(
        queries, pool.keys, pool.positives, frozen,
        query_groups=pool.query_groups, key_groups=pool.key_groups, weights=pool.weights,
    )  # fmt: skip
    loss.total.backward()
    assert frozen.grad is None and queries.grad is not None
    assert_equal(
        solve(pool, 5.0, "streaming")._replace(of_queries=queries.grad), solve(pool, 5.0, "reference")
    )


@given(st.permutations(range(11)), st.permutations(range(14)), st.sampled_from([1.0, 20.0, 100.0]))
def test_the_order_of_queries_and_of_keys_changes_nothing(
    queries: list[int], keys: list[int], scale: float
) -> None:
    pool = make_pool(11, 3)
    of_queries, of_keys = torch.tensor(queries), torch.tensor(keys)
    moved = Pool(
        pool.queries[of_queries],
        pool.keys[of_keys],
        of_keys.argsort()[pool.positives[of_queries]],
        pool.query_groups[of_queries],
        pool.key_groups[of_keys],
        pool.weights[of_queries],
    )
    before, after = (
        solve(pool, scale, Streaming((4, 5))),
        solve(moved, scale, Streaming((4, 5))),
    )
    expected = before._replace(
        rows=before.rows[of_queries],
        columns=before.columns[of_queries],
        correct=before.correct[of_queries],
        of_queries=before.of_queries[of_queries],
        of_keys=before.of_keys[of_keys],
    )
    assert_equal(after, expected, tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_twice_is_bitwise_the_same(dtype: torch.dtype) -> None:
    pool = make_pool(60, 9, width=32)
    first, second = (solve(pool, 20.0, Streaming((16, 16)), dtype=dtype) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_bfloat16_products_of_others_stay_as_they_were() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    solve(make_pool(5), 20.0, "streaming", dtype=torch.bfloat16)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_logarithms_too_far_apart_for_one_exponential_are_exact() -> None:
    # One cluster of keys near its queries, one opposite: at scale 100 their sums lie 150 apart.
    pool = make_pool(12, groups="none", width=6, spread=0.05)
    queries = normalize(pool.queries + torch.tensor([9.0, 0, 0, 0, 0, 0], dtype=torch.float64), dim=1)
    keys = pool.keys.clone()
    keys[pool.positives] = torch.cat([queries[:6], -queries[6:]])
    spread = pool._replace(queries=queries, keys=keys)
    logits = (100.0 * queries @ keys.T).scatter(1, pool.positives[:, None], -math.inf)
    assert float(logits.logsumexp(0).max() - logits.logsumexp(0).min()) > 150
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-4)):
        rounded = spread._replace(queries=queries.to(dtype).double(), keys=keys.to(dtype).double())
        result = solve(rounded, 100.0, "streaming", dtype=dtype)
        assert_equal(result, solve(rounded, 100.0, "reference"), tolerance=tolerance)


@pytest.mark.parametrize("widths", [(), ((0, 1.0),), ((3, 1.0), (3, 1.0)), ((4, 1.0), (2, 1.0)), ((7, 1.0),)])
def test_mistaken_widths_are_refused(widths: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ValueError, match="do not grow from at least 1 to at most 6"):
        solve(make_pool(3), 20.0, "streaming", widths=widths)
