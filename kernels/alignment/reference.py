"""The alignment loss as dense torch and plain autograd: the definition that the others are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from kernels.alignment.pool import AlignmentLoss, Pool, gather_pool, gather_rows


def alignment_loss_reference(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    inverse_temperature: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    weights: Tensor,
    ranks: ProcessGroup | None,
    additive_margin: float = 0.0,
    widths: tuple[tuple[int, float], ...] | None = None,
) -> AlignmentLoss:
    """See ``kernels.alignment``; holds the (Q, K) similarities of the whole pool several times over.

    With ranks, the gathered pool is constant except for this rank's own vectors. The loss of the whole pool
    gives them their complete gradient, the loss of this rank's pairs gives the temperature this rank's share.
    """
    pool = gather_pool(queries, keys, positives, query_groups, key_groups, ranks)
    own = pool.own_queries
    how = (pool, additive_margin, widths)
    if ranks is None:
        rows, columns, correct = _of_prefixes(queries, keys, inverse_temperature, *how)
        total = (weights.to(rows.dtype) * (rows + columns)).sum() / 2
    else:
        all_weights, _ = gather_rows(weights, weights.new_zeros(len(keys)), pool.lengths, ranks)
        all_weights = all_weights.to(torch.promote_types(queries.dtype, torch.float32))
        with_own_queries = torch.cat([pool.queries[: own.start], queries, pool.queries[own.stop :]])
        with_own_keys = torch.cat([pool.keys[: pool.own_keys.start], keys, pool.keys[pool.own_keys.stop :]])
        rows, columns, _ = _of_prefixes(with_own_queries, with_own_keys, inverse_temperature.detach(), *how)
        whole = (all_weights * (rows + columns)).sum() / 2
        rows, columns, correct = _of_prefixes(pool.queries, pool.keys, inverse_temperature, *how)
        total = (all_weights[own] * (rows[own] + columns[own])).sum() / 2 + (whole - whole.detach())
    return AlignmentLoss(total, rows[own].detach(), columns[own].detach(), correct[own])


def _of_prefixes(
    queries: Tensor,
    keys: Tensor,
    inverse_temperature: Tensor,
    pool: Pool,
    additive_margin: float,
    widths: tuple[tuple[int, float], ...] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row losses and column losses, each the weighted sum over the prefixes, and correctness in the longest."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    queries, keys, scale = queries.to(wide), keys.to(wide), inverse_temperature.to(wide)
    if widths is None:
        return _dense(queries, keys, scale, pool, additive_margin)
    losses = [
        (
            weight,
            _dense(normalize(queries[:, :width]), normalize(keys[:, :width]), scale, pool, additive_margin),
        )
        for width, weight in widths
    ]
    rows, columns = (torch.stack([weight * found[i] for weight, found in losses]).sum(0) for i in (0, 1))
    return rows, columns, losses[-1][1][2]


def _dense(
    queries: Tensor, keys: Tensor, scale: Tensor, pool: Pool, additive_margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row losses, column losses and correctness of all Q pairs of the pool, each (Q,)."""
    logits = scale * (queries @ keys.T)  # (Q, K)
    of_positive = logits.gather(1, pool.positives[:, None])[:, 0]
    is_positive = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, pool.positives[:, None], True)
    same_group = pool.query_groups[:, None] == pool.key_groups[None, :]
    is_negative = ~(is_positive | same_group)
    correct = ~(is_negative & (logits > of_positive[:, None])).any(1)
    of_positive = of_positive - scale * additive_margin
    rows = _softplus_form(logits, is_negative, of_positive)
    columns = _softplus_form(
        logits.T.index_select(0, pool.positives), is_negative.T.index_select(0, pool.positives), of_positive
    )
    return rows, columns, correct


def _softplus_form(logits: Tensor, is_negative: Tensor, of_positive: Tensor) -> Tensor:
    """Return softplus(logsumexp over the negatives - positive), exactly 0 where a row has no negative."""
    has_negatives = is_negative.any(1)
    # Rows without negatives are replaced before the logarithm: -inf would turn their gradient into NaN.
    negatives = logits.masked_fill(~is_negative, -torch.inf).masked_fill(~has_negatives[:, None], 0.0)
    against = negatives.logsumexp(1) - of_positive
    return torch.logaddexp(against, torch.zeros_like(against)).masked_fill(~has_negatives, 0.0)
