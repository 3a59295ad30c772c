"""Pools of pairs to try the alignment loss on, and what an implementation makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from kernels.alignment import alignment_loss, solution
from kernels.alignment.streaming import Streaming


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
    implementation: str,
    *,
    dtype: torch.dtype = torch.float64,
    ranks: ProcessGroup | None = None,
    tile: tuple[int, int] | None = None,
    additive_margin: float = 0.0,
    widths: tuple[tuple[int, float], ...] | None = None,
) -> Result:
    """Return the loss and its gradients; with ``tile``, streaming in tiles of that size."""
    queries, keys = (part.to(dtype, copy=True).requires_grad_() for part in (pool.queries, pool.keys))
    inverse_temperature = torch.tensor(
        scale, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True
    )
    if tile is None:
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
        assert implementation == "streaming"
        vectors = (queries, keys, pool.positives, inverse_temperature)
        loss = solution.solve(Streaming(tile), *vectors, *pool[3:], ranks, additive_margin, widths)
    return Result(
        loss.total.detach(), *loss[1:], *torch.autograd.grad(loss.total, (queries, keys, inverse_temperature))
    )


def assert_equal(result: Result, truth: Result, tolerance: float = 1e-12) -> None:
    for name, value, true in zip(Result._fields, result, truth, strict=True):
        close = torch.isclose(value.double(), true.double(), rtol=tolerance, atol=tolerance)
        assert value.shape == true.shape and close.all(), f"{name}: {value} is not {true}"
