"""The alignment loss: its definition against a naive formula, the streaming one against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kernels.alignment import AlignmentLoss, alignment_loss
from kernels.alignment.streaming import Streaming
from tests.kernels.alignment_pools import Pool, assert_equal, make_pool, solve

IMPLEMENTATIONS = ("reference", "streaming")


def naive_losses(pool: Pool, scale: float) -> tuple[list[float], list[float]]:
    """Row and column losses, minus the logarithm of the positive's share, one number at a time."""

    def similarity(query: int, key: int) -> float:
        return scale * math.fsum(
            a * b for a, b in zip(pool.queries[query].tolist(), pool.keys[key].tolist(), strict=True)
        )

    rows, columns = [], []
    for query, positive in enumerate(pool.positives.tolist()):
        own = math.exp(similarity(query, positive))
        against_keys = sum(
            math.exp(similarity(query, key))
            for key in range(len(pool.keys))
            if key != positive and pool.key_groups[key] != pool.query_groups[query]
        )
        against_queries = sum(
            math.exp(similarity(other, positive))
            for other in range(len(pool.queries))
            if other != query and pool.query_groups[other] != pool.key_groups[positive]
        )
        rows.append(-math.log(own / (own + against_keys)))
        columns.append(-math.log(own / (own + against_queries)))
    return rows, columns


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("groups", ["none", "some", "all"])
@pytest.mark.parametrize("hard_negatives", [0, 3])
def test_losses_are_minus_the_log_of_the_positives_share(
    implementation: str, groups: str, hard_negatives: int
) -> None:
    pool = make_pool(5, hard_negatives, groups)
    result = solve(pool, 7.0, implementation)
    rows, columns = naive_losses(pool, 7.0)
    assert result.rows.tolist() == pytest.approx(rows, rel=1e-11, abs=1e-12)
    assert result.columns.tolist() == pytest.approx(columns, rel=1e-11, abs=1e-12)
    expected = sum(w * (r + c) / 2 for w, r, c in zip(pool.weights.tolist(), rows, columns, strict=True))
    assert float(result.total) == pytest.approx(expected, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("hard_negatives", [0, 2])
def test_gradients_are_those_of_finite_differences(implementation: str, hard_negatives: int) -> None:
    pool = make_pool(5, hard_negatives, width=3)

    def total(queries: Tensor, keys: Tensor, inverse_temperature: Tensor) -> Tensor:
        return alignment_loss(
            queries,
            keys,
            pool.positives,
            inverse_temperature,
            query_groups=pool.query_groups,
            key_groups=pool.key_groups,
            weights=pool.weights,
            implementation=implementation,
        ).total

    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        total, (pool.queries.clone().requires_grad_(), pool.keys.clone().requires_grad_(), scale)
    )


@pytest.mark.parametrize(
    ("pairs", "hard_negatives"), [(0, 0), (0, 4), (1, 0), (1, 1), (2, 0), (7, 5), (40, 19)]
)
@pytest.mark.parametrize("groups", ["none", "some", "all"])
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("tile", [(3, 7), (16, 16), (64, 1024)], ids=str)
def test_streaming_equals_reference_in_float64_for_every_tile(
    pairs: int, hard_negatives: int, groups: str, scale: float, tile: tuple[int, int]
) -> None:
    pool = make_pool(pairs, hard_negatives, groups)
    assert_equal(
        solve(
            pool,
            scale,
            Streaming(tile),
        ),
        solve(pool, scale, "reference"),
    )


@pytest.mark.parametrize(
    ("dtype", "floor"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str
)
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_low_precision_loses_only_the_rounding_of_the_gradients(
    dtype: torch.dtype, floor: float, scale: float, implementation: str
) -> None:
    pool = make_pool(40, 5)
    pool = pool._replace(queries=pool.queries.to(dtype).double(), keys=pool.keys.to(dtype).double())
    result, truth = solve(pool, scale, implementation, dtype=dtype), solve(pool, scale, "reference")
    assert result.total.dtype == torch.float32 and result.of_queries.dtype == dtype
    # Logits are float32 whatever the inputs are: their error grows with the scale, but from 1e-7.
    torch.testing.assert_close(result.rows.double(), truth.rows, rtol=1e-5, atol=1e-6 * scale)
    for value, true in ((result.of_queries, truth.of_queries), (result.of_keys, truth.of_keys)):
        assert float((value.double() - true).norm() / true.norm()) <= floor + 1e-6 * scale
    assert float((result.of_scale - truth.of_scale).abs() / truth.of_scale.abs()) <= floor + 1e-6 * scale


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_easy_pairs_at_scale_100_keep_their_digits_in_float32(implementation: str) -> None:
    pool = make_pool(24, groups="none", width=32, spread=0.02)
    pool = pool._replace(queries=pool.queries.float().double(), keys=pool.keys.float().double())
    result = solve(pool, 100.0, implementation, dtype=torch.float32)
    truth = solve(pool, 100.0, "reference")
    assert 0 < float(truth.rows.max()) < 1e-6  # so easy that 1 - p is nothing in float32
    torch.testing.assert_close(result.rows.double(), truth.rows, rtol=2e-4, atol=0.0)
    error = (result.of_queries.double() - truth.of_queries).norm() / truth.of_queries.norm()
    assert float(error) <= 2e-4
    logits = 100.0 * (pool.queries @ pool.keys.T).float()
    usual = torch.nn.functional.cross_entropy(logits, pool.positives, reduction="none")
    assert float((usual.double() - truth.rows).norm() / truth.rows.norm()) > 0.1  # what is avoided


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("groups", ["all", "none"])
def test_a_row_without_negatives_has_loss_and_gradient_zero(implementation: str, groups: str) -> None:
    pool = make_pool(6 if groups == "all" else 1, groups=groups)
    result = solve(pool, 20.0, implementation)
    for value in result._replace(correct=~result.correct):
        assert not value.any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_hard_negatives_join_the_row_direction_only(implementation: str) -> None:
    with_them = make_pool(5, 3, "none")
    without = with_them._replace(
        keys=with_them.keys[with_them.positives],
        key_groups=with_them.key_groups[with_them.positives],
        positives=torch.arange(5),
    )
    result, other = solve(with_them, 5.0, implementation), solve(without, 5.0, implementation)
    torch.testing.assert_close(result.columns, other.columns, rtol=1e-12, atol=1e-12)
    assert (result.rows > other.rows).all()
    hard = torch.ones(8, dtype=torch.bool).index_fill(0, with_them.positives, False)
    assert result.of_keys[hard].any(dim=1).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_pairs_of_weight_zero_are_negatives_but_have_no_loss(implementation: str) -> None:
    pool = make_pool(6, groups="none")
    half = pool._replace(weights=torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    result = solve(half, 5.0, implementation)
    assert float(result.total) == pytest.approx(
        float((result.rows + result.columns)[:3].sum() / 2), rel=1e-12
    )
    assert result.of_queries.any(dim=1).all()  # the last three push the first three's keys away


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_correct_means_that_no_negative_is_closer(implementation: str) -> None:
    pool = make_pool(30, 4, "some", spread=0.8)
    similarities = pool.queries @ pool.keys.T
    excluded = pool.query_groups[:, None] == pool.key_groups[None, :]
    excluded[torch.arange(30), pool.positives] = False
    expected = similarities.masked_fill(excluded, -2.0).argmax(1) == pool.positives
    assert 0 < int(expected.sum()) < 30
    assert torch.equal(solve(pool, 20.0, implementation).correct, expected)


def test_any_stride_is_accepted() -> None:
    pool = make_pool(9, 4)
    strided = pool._replace(
        queries=torch.randn(9, 12, dtype=torch.float64)[:, ::2], keys=pool.keys.T.contiguous().T
    )
    assert_equal(
        solve(
            strided,
            5.0,
            Streaming((4, 5)),
        ),
        solve(strided, 5.0, "reference"),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_does_not_reach_the_logits(implementation: str) -> None:
    pool = make_pool(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = solve(pool, 20.0, implementation, dtype=torch.float32)
    assert torch.equal(inside.rows, solve(pool, 20.0, implementation, dtype=torch.float32).rows)


def test_similarities_are_never_whole() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    pool = make_pool(200, 100, width=4)
    with Watch():
        solve(
            pool,
            20.0,
            Streaming((32, 32)),
        )
    assert largest <= 500 * 4 < 200 * 300


def test_without_a_wanted_gradient_there_is_none() -> None:
    pool = make_pool(4)
    loss = alignment_loss(
        pool.queries,
        pool.keys,
        pool.positives,
        torch.tensor(20.0),
        query_groups=pool.query_groups,
        key_groups=pool.key_groups,
        weights=pool.weights,
    )
    assert isinstance(loss, AlignmentLoss) and not loss.total.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": torch.tensor([0, 1, 1])}, "a key of its own"),
        ({"positives": torch.tensor([0, -1, 2])}, "a key of its own"),
        ({"positives": torch.tensor([0, 1, 3])}, "a key of its own"),
        ({"weights": torch.ones(2)}, r"weights \(2,\) is not \(3,\)"),
        ({"keys": torch.zeros(3, 5, dtype=torch.float64)}, r"are not \(P, E\) and \(R, E\)"),
        ({"key_groups": torch.zeros(4)}, r"key_groups \(4,\) is not \(3,\)"),
    ],
)
def test_mistaken_arguments_are_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(make_pool(3)._replace(**change), 20.0, "reference")
