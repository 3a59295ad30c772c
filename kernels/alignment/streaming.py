"""The alignment loss in tiles of the similarities, never the whole of them; gradients made in the forward.

Pass 1 takes the logsumexp over the negatives of this rank's rows and of its columns, tile by tile; one
exchange gives every rank the logarithms L of all rows and columns. Pass 2 makes each tile again:

    L_row_i = S_ip + row_i      P_row_ij = exp(S_ij - L_row_i)     (and the same for columns, over queries)
    dS_ij   = w_i/2 P_row_ij + w_j/2 P_col_ij                       negatives
    dS_ip   = -w_i/2 (sigmoid(n_row_i - S_ip) + sigmoid(n_col_i - S_ip))
    dq_i = s sum_j dS_ij k_j     dk_j = s sum_i dS_ij q_i     ds = sum_i <q_i, dq_i> / s

One process visits every tile once per pass and serves both directions from it: four matrix products. With
ranks, a rank's queries need all keys and its keys need all queries: two bands of tiles, six products.
The gradients are stored and the backward only scales them, so no collective runs inside autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from kernels.alignment.pool import AlignmentLoss, Pool, gather_pool, gather_rows

TILE = 1024  # rows and columns; the tile and its two temporaries then stay near the processor


def alignment_loss_streaming(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    inverse_temperature: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    weights: Tensor,
    ranks: ProcessGroup | None,
    *,
    tile: int = TILE,
) -> AlignmentLoss:
    """See ``kernels.alignment``; beyond the pool and the gradients it holds a few (tile, tile)."""
    wanted = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (queries, keys, inverse_temperature)
    )
    return AlignmentLoss(
        *_AlignmentLoss.apply(
            queries,
            keys,
            inverse_temperature,
            positives,
            query_groups,
            key_groups,
            weights,
            ranks,
            tile,
            wanted,
        )
    )


class _Band(NamedTuple):
    """A rectangle of the similarities, and which of its sides are this rank's to answer for."""

    queries: slice
    keys: slice
    for_queries: bool
    for_keys: bool


class _AlignmentLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        inverse_temperature: Tensor,
        positives: Tensor,
        query_groups: Tensor,
        key_groups: Tensor,
        weights: Tensor,
        ranks: ProcessGroup | None,
        tile: int,
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(queries.dtype, torch.float32)
        pool = gather_pool(queries, keys, positives, query_groups, key_groups, ranks)
        scale = inverse_temperature.to(wide)
        half = weights.to(wide) / 2
        own_queries, own_positives = queries.to(wide), keys[positives].to(wide)
        of_positive = scale * (own_queries * own_positives).sum(1)  # (P,)

        row_negatives, column_negatives, closest = _negatives_of_own(pool, scale, tile)
        row_gap = row_negatives - of_positive
        column_gap = column_negatives[positives] - of_positive
        rows, columns = _softplus(row_gap), _softplus(column_gap)
        total = (half * (rows + columns)).sum()

        # Always exchanged, gradient or not: whether one is wanted may differ between ranks.
        of_queries = torch.stack([of_positive + rows, half], 1)  # (P, 2): L and weight
        of_keys = of_queries.new_tensor([torch.inf, 0.0]).repeat(len(keys), 1)  # no partner: no column loss
        of_keys[positives] = torch.stack([of_positive + columns, half], 1)
        of_queries, of_keys = gather_rows(of_queries, of_keys, pool.lengths, ranks)

        if wanted:
            query_gradient, key_gradient = _gradients_of_own(pool, scale, of_queries, of_keys, tile)
            pull = (-half * (row_gap.sigmoid() + column_gap.sigmoid()))[:, None]
            query_gradient += pull * own_positives
            key_gradient[positives] += pull * own_queries
            scale_gradient = (own_queries * query_gradient).sum()
            ctx.save_for_backward(
                query_gradient.mul_(scale).to(queries.dtype),
                key_gradient.mul_(scale).to(keys.dtype),
                scale_gradient.to(inverse_temperature.dtype),
            )
        correct = closest <= of_positive
        ctx.mark_non_differentiable(rows, columns, correct)
        return total, rows, columns, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_queries, of_keys, of_scale = ctx.saved_tensors
        gradients = (upstream.to(stored.dtype) * stored for stored in (of_queries, of_keys, of_scale))
        return (*gradients, None, None, None, None, None, None, None)


def _negatives_of_own(pool: Pool, scale: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pass 1: logsumexp over the negatives of own rows (P,) and columns (R,), and the rows' largest (P,)."""
    rows = scale.new_full((len(pool.queries),), -torch.inf)
    largest = rows.clone()
    columns = scale.new_full((len(pool.keys),), -torch.inf)
    for band in _bands(pool):
        for query_rows, key_rows, _, _, logits in _tiles(pool, scale, band, tile):
            if band.for_queries:
                rows[query_rows] = torch.logaddexp(rows[query_rows], logits.logsumexp(1))
                largest[query_rows] = torch.maximum(largest[query_rows], logits.amax(1))
            if band.for_keys:
                columns[key_rows] = torch.logaddexp(columns[key_rows], logits.logsumexp(0))
    return rows[pool.own_queries], columns[pool.own_keys], largest[pool.own_queries]


def _gradients_of_own(
    pool: Pool, scale: Tensor, of_queries: Tensor, of_keys: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """Pass 2: the negatives' part of own d total / d (s q) (P, E) and d total / d (s k) (R, E).

    ``of_queries`` (Q, 2) and ``of_keys`` (K, 2) hold L and half the weight of every row and column.
    """
    first_query, first_key = pool.own_queries.start, pool.own_keys.start
    query_gradient = torch.zeros_like(pool.queries[pool.own_queries], dtype=scale.dtype)
    key_gradient = torch.zeros_like(pool.keys[pool.own_keys], dtype=scale.dtype)
    for band in _bands(pool):
        for query_rows, key_rows, queries, keys, logits in _tiles(pool, scale, band, tile):
            row_logarithm, row_weight = of_queries[query_rows, None].unbind(2)
            column_logarithm, column_weight = of_keys[None, key_rows].unbind(2)
            pull = (logits - row_logarithm).exp_().mul_(row_weight)
            pull += logits.sub_(column_logarithm).exp_().mul_(column_weight)
            if band.for_queries:
                query_gradient[query_rows.start - first_query : query_rows.stop - first_query] += pull @ keys
            if band.for_keys:
                key_gradient[key_rows.start - first_key : key_rows.stop - first_key] += pull.T @ queries
    return query_gradient, key_gradient


def _bands(pool: Pool) -> list[_Band]:
    """Return the rectangles that hold this rank's rows and columns."""
    all_queries, all_keys = slice(0, len(pool.queries)), slice(0, len(pool.keys))
    if len(pool.lengths) == 1:
        return [_Band(all_queries, all_keys, True, True)]
    return [_Band(pool.own_queries, all_keys, True, False), _Band(all_queries, pool.own_keys, False, True)]


def _tiles(
    pool: Pool, scale: Tensor, band: _Band, tile: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Yield (query rows, key rows, queries, keys, logits); -inf where an entry is not a negative."""
    for query_rows in _pieces(band.queries, tile):
        queries = pool.queries[query_rows].to(scale.dtype)
        for key_rows in _pieces(band.keys, tile):
            keys = pool.keys[key_rows].to(scale.dtype)
            numbers = torch.arange(key_rows.start, key_rows.stop, device=keys.device)
            no_negative = pool.query_groups[query_rows, None] == pool.key_groups[None, key_rows]
            no_negative |= pool.positives[query_rows, None] == numbers[None, :]
            logits = ((queries * scale) @ keys.T).masked_fill_(no_negative, -torch.inf)
            yield query_rows, key_rows, queries, keys, logits


def _pieces(whole: slice, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``whole``."""
    for start in range(whole.start, whole.stop, size):
        yield slice(start, min(start + size, whole.stop))


def _softplus(gap: Tensor) -> Tensor:
    """Return log(1 + exp(gap)); torch's own softplus is linear above 20, which float64 can tell."""
    return torch.logaddexp(gap, torch.zeros_like(gap))
