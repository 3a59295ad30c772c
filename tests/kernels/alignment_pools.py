"""Pools of pairs to try the alignment loss on, and what an implementation makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from kernels.alignment import alignment_loss, solution
from kernels.alignment.solution import Passes


class Pool(NamedTuple):
    """Pairs and hard negatives of one process, or of one rank."""

    queries: Tensor
    keys: Tensor
    positives: Tensor
    query_groups: Tensor
    key_groups: Tensor
    weights: Tensor


def make_pool(
    pairs: int, hard_negatives: int = 0, groups: str = "some", width: int = 6, spread: float = 1.0
) -> Pool:
    """Keys lie ``spread`` around their queries; positives are scattered among the hard negatives."""
    generator = torch.Generator().manual_seed(pairs * 97 + hard_negatives)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    queries = normalize(draw(pairs, width), dim=1)
    positives = torch.randperm(pairs + hard_negatives, generator=generator)[:pairs]
    keys = draw(pairs + hard_negatives, width)
    keys[positives] = queries + spread * keys[positives]
    numbers = {
        "none": torch.arange(pairs + hard_negatives),
        "some": torch.randint(1 + pairs // 2, (pairs + hard_negatives,), generator=generator),
        "all": torch.zeros(pairs + hard_negatives, dtype=torch.long),
    }[groups]
    return Pool(
        queries,
        normalize(keys, dim=1),
        positives,
        numbers[positives],
        numbers,
        torch.rand(pairs, generator=generator, dtype=torch.float64) + 0.1,
    )


class Result(NamedTuple):
    """The loss and its gradients."""

    total: Tensor
    rows: Tensor
    columns: Tensor
    correct: Tensor
    of_queries: Tensor
    of_keys: Tensor
    of_scale: Tensor


def solve(
    pool: Pool,
    scale: float,
    implementation: str | Passes,
    *,
    dtype: torch.dtype = torch.float64,
    ranks: ProcessGroup | None = None,
    additive_margin: float = 0.0,
    widths: tuple[tuple[int, float], ...] | None = None,
) -> Result:
    """Return the loss and its gradients; given its passes, an implementation can be tried in small tiles."""
    queries, keys = (part.to(dtype, copy=True).requires_grad_() for part in (pool.queries, pool.keys))
    inverse_temperature = torch.tensor(
        scale, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True
    )
    if isinstance(implementation, str):
        loss = alignment_loss(
            queries,
            keys,
            pool.positives,
            inverse_temperature,
            query_groups=pool.query_groups,
            key_groups=pool.key_groups,
            weights=pool.weights,
            additive_margin=additive_margin,
            widths=widths,
            ranks=ranks,
            implementation=implementation,
        )
    else:
        vectors = (queries, keys, pool.positives, inverse_temperature)
        loss = solution.solve(implementation, *vectors, *pool[3:], ranks, additive_margin, widths)
    return Result(
        loss.total.detach(), *loss[1:], *torch.autograd.grad(loss.total, (queries, keys, inverse_temperature))
    )


def assert_equal(result: Result, truth: Result, tolerance: float = 1e-12) -> None:
    for name, value, true in zip(Result._fields, result, truth, strict=True):
        close = torch.isclose(value.double(), true.double(), rtol=tolerance, atol=tolerance)
        assert value.shape == true.shape and close.all(), f"{name}: {value} is not {true}"


def rounded(pool: Pool, dtype: torch.dtype) -> Pool:
    """Return ``pool`` with the vectors that ``dtype`` can hold: what is lost by that is nobody's error."""
    return pool._replace(queries=pool.queries.to(dtype).double(), keys=pool.keys.to(dtype).double())


# What a result may be worse than dense torch's in the same dtype, relative to the whole, at scale 1.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 1e-2}


def assert_no_worse_than_torch(
    pool: Pool, scale: float, implementation: str | Passes, dtype: torch.dtype, **options: Any
) -> None:
    """Both against float64: an error is at most dense torch's in ``dtype`` and a tolerance.

    Logits are float32 in every dtype, so losses have float32's tolerance, and it grows with the scale.
    """
    pool = rounded(pool, dtype)
    truth = solve(pool, scale, "reference", **options)
    torchs = solve(pool, scale, "reference", dtype=dtype, **options)
    result = solve(pool, scale, implementation, dtype=dtype, **options)
    for name, value, dense, true in zip(Result._fields, result, torchs, truth, strict=True):
        assert value.shape == true.shape and value.dtype == dense.dtype, name
        if name == "correct":
            assert torch.equal(value, true)
            continue
        in_dtype = TOLERANCES[dtype] if name.startswith("of_") else 0.0
        tolerance = in_dtype + TOLERANCES[torch.float32] * max(1.0, scale / 5)
        error, allowed = ((one.double() - true).norm() for one in (value, dense))
        assert error <= allowed + tolerance * true.norm() + 1e-12, f"{name}: {error} against {allowed}"
