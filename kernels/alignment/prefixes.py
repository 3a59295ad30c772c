"""Prefixes: the leading coordinates of the vectors that are compared, each prefix a loss of its own.

Source: Matryoshka representation learning, Kusupati et al. 2022.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 4096  # at a time, so that no wide copy of the vectors is ever whole


class Prefixes(NamedTuple):
    """W prefixes of the vectors of a pool, the shortest first."""

    widths: tuple[int, ...]
    weights: tuple[float, ...]  # of each prefix's loss
    of_queries: Tensor | None = None  # (Q, W) 1 / length of each query's prefix; None: taken as they are
    of_keys: Tensor | None = None  # (K, W)

    def chunk(self, prefix: int) -> slice:
        """Return the coordinates that a prefix has beyond the one before it."""
        return slice(self.widths[prefix - 1] if prefix else 0, self.widths[prefix])


def prefixes_of(
    queries: Tensor, keys: Tensor, widths: tuple[tuple[int, float], ...] | None, wide: torch.dtype
) -> Prefixes:
    """Return the prefixes of ``queries`` (Q, E) and ``keys`` (K, E); ``widths`` None is the vectors themselves."""
    if widths is None:
        return Prefixes((queries.shape[1],), (1.0,))
    lengths, weights = zip(*widths, strict=True)
    return Prefixes(lengths, weights, *(_inverse_lengths(side, lengths, wide) for side in (queries, keys)))


def _inverse_lengths(vectors: Tensor, widths: tuple[int, ...], wide: torch.dtype) -> Tensor:
    """Return 1 / length of each prefix of each row (rows, W); a prefix of zeros stays one."""
    inverse = torch.empty((len(vectors), len(widths)), dtype=wide, device=vectors.device)
    for rows, part in zip(inverse.split(_ROWS), vectors.split(_ROWS), strict=True):
        squares = part.to(wide).square()
        start = 0
        for number, stop in enumerate(widths):
            rows[:, number] = squares[:, start:stop].sum(1)
            start = stop
        rows.copy_(rows.cumsum(1).clamp_min_(1e-24).rsqrt_())
    return inverse


def turn(gradient: Tensor, factors: Tensor, vectors: Tensor, prefixes: Prefixes) -> None:
    """Take ``factors`` (rows, W) times each prefix of ``vectors`` away: a prefix has no gradient along itself."""
    of_chunks = factors.flip(1).cumsum(1).flip(1)
    for p in range(len(prefixes.widths)):
        chunk = prefixes.chunk(p)
        gradient[:, chunk].addcmul_(vectors[:, chunk].to(gradient.dtype), of_chunks[:, p, None], value=-1)
