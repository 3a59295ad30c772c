"""What streaming and triton share: the exchange between ranks, the loss of own pairs, gradients made in the forward.

Pass 1 takes the logsumexp over the negatives of this rank's rows and of its columns; one exchange gives every
rank the logarithms L of all rows and columns. Pass 2 makes each similarity again:

    z_ij    = s <q_i, k_j>, of prefix p: s r_i r_j <q_i[:p], k_j[:p]> with r = 1 / length of the prefix
    S_ij    = z_ij, but S_ip = z_ip - s m for the positive
    L_row_i = S_ip + row_i      P_row_ij = exp(S_ij - L_row_i)     (and the same for columns, over queries)
    dS_ij   = w_i/2 P_row_ij + w_j/2 P_col_ij                       negatives
    dS_ip   = -w_i/2 (sigmoid(n_row_i - S_ip) + sigmoid(n_col_i - S_ip))
    dq_i    = s sum_j dS_ij r_i r_j k_j - r_i^2 t_i q_i             t_i = sum_j dS_ij z_ij; last term where renormalised
    dk_j    = the same over queries                                 ds = sum_i t_i / s - m sum_i dS_ip

The gradients are stored and the backward only scales them, so no collective runs inside autograd.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from kernels.alignment.pool import AlignmentLoss, Pool, gather_pool, gather_rows
from kernels.alignment.prefixes import Prefixes, prefixes_of

_ROWS = 4096  # positives at a time


class Negatives(NamedTuple):
    """Pass 1, of this rank's P queries and R keys in W prefixes."""

    rows: Tensor  # (P, W) logsumexp of each query's negatives, -inf where it has none
    columns: Tensor  # (R, W) the same of each key
    closest: Tensor  # (P,) the largest similarity of a negative, in the longest prefix


class Gradients(NamedTuple):
    """Pass 2, for an upstream gradient of 1."""

    of_queries: Tensor  # (P, E) in the queries' dtype
    of_keys: Tensor  # (R, E) in the keys' dtype
    along: Tensor  # () sum of dS_ij z_ij over this rank's queries


class Passes(Protocol):
    """The two passes over all similarities; ``terms`` are L, weight / 2 and dS_ip of every row and column."""

    def negatives(self, pool: Pool, prefixes: Prefixes, scale: Tensor) -> Negatives:
        """Pass 1."""

    def gradients(
        self, pool: Pool, prefixes: Prefixes, scale: Tensor, query_terms: Tensor, key_terms: Tensor
    ) -> Gradients:
        """Pass 2; ``query_terms`` (Q, W, 3), ``key_terms`` (K, W, 3)."""


def solve(
    passes: Passes,
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    inverse_temperature: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    weights: Tensor,
    ranks: ProcessGroup | None,
    additive_margin: float,
    widths: tuple[tuple[int, float], ...] | None,
) -> AlignmentLoss:
    """See ``kernels.alignment``; every rank must call."""
    differentiable = (queries, keys, inverse_temperature)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)
    constant = (positives, query_groups, key_groups, weights, ranks, additive_margin, widths, passes, wanted)
    return AlignmentLoss(*_Solution.apply(*differentiable, *constant))


class _Solution(torch.autograd.Function):
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
        additive_margin: float,
        widths: tuple[tuple[int, float], ...] | None,
        passes: Passes,
        wanted: bool,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(queries.dtype, torch.float32)
        pool = gather_pool(queries, keys, positives, query_groups, key_groups, ranks)
        prefixes = prefixes_of(pool.queries, pool.keys, widths, wide)
        scale = inverse_temperature.to(wide)
        factors = scale.new_tensor(prefixes.weights)  # (W,)

        compared = scale * _cosines_of_positives(pool, prefixes, wide)  # (P, W)
        of_positive = compared - scale * additive_margin
        found = passes.negatives(pool, prefixes, scale)
        row_gap = found.rows - of_positive
        column_gap = found.columns[positives] - of_positive
        rows, columns = _softplus(row_gap), _softplus(column_gap)
        half = weights.to(wide)[:, None] / 2 * factors  # (P, W)
        total = (half * (rows + columns)).sum()

        # Always exchanged, gradient or not: whether one is wanted may differ between ranks.
        pull = -half * (row_gap.sigmoid() + column_gap.sigmoid())
        query_terms = torch.stack([of_positive + rows, half, pull], 2)
        key_terms = half.new_tensor([torch.inf, 0.0, 0.0]).repeat(
            len(keys), len(factors), 1
        )  # no partner, no loss
        key_terms[positives] = torch.stack([of_positive + columns, half, pull], 2)
        query_terms, key_terms = gather_rows(query_terms, key_terms, pool.lengths, ranks)

        if wanted:
            made = passes.gradients(pool, prefixes, scale, query_terms, key_terms)
            of_scale = made.along / scale - additive_margin * pull.sum()
            ctx.save_for_backward(made.of_queries, made.of_keys, of_scale.to(inverse_temperature.dtype))
        rows, columns = rows @ factors, columns @ factors
        correct = found.closest <= compared[:, -1]
        ctx.mark_non_differentiable(rows, columns, correct)
        return total, rows, columns, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        stored = ctx.saved_tensors
        if (
            upstream.device.type != "cpu" or upstream != 1
        ):  # a copy of all gradients; asking a GPU would stop it
            stored = tuple(upstream.to(gradient.dtype) * gradient for gradient in stored)
        return (*stored, *(None for _ in range(9)))


def _cosines_of_positives(pool: Pool, prefixes: Prefixes, wide: torch.dtype) -> Tensor:
    """Return the similarity of each own query to its key in each prefix (P, W), before scale and margin."""
    cosines = torch.empty(
        (len(pool.queries[pool.own_queries]), len(prefixes.widths)), dtype=wide, device=pool.queries.device
    )
    for start in range(pool.own_queries.start, pool.own_queries.stop, _ROWS):
        rows = slice(start, min(start + _ROWS, pool.own_queries.stop))
        partners = pool.positives[rows]
        products = pool.queries[rows].to(wide) * pool.keys[partners].to(wide)
        chunks = [products[:, prefixes.chunk(p)].sum(1) for p in range(len(prefixes.widths))]
        found = torch.stack(chunks, 1).cumsum(1)
        if prefixes.of_queries is not None and prefixes.of_keys is not None:
            found *= prefixes.of_queries[rows] * prefixes.of_keys[partners]
        cosines[rows.start - pool.own_queries.start : rows.stop - pool.own_queries.start] = found
    return cosines


def _softplus(gap: Tensor) -> Tensor:
    """Return log(1 + exp(gap)); torch's own softplus is linear above 20, which float64 can tell."""
    return torch.logaddexp(gap, torch.zeros_like(gap))
