"""The pool of an alignment loss: every rank's queries and keys, end to end in the order of the ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class AlignmentLoss(NamedTuple):
    """What ``alignment_loss`` returns, for this rank's P pairs."""

    total: Tensor  # () weighted sum over this rank's pairs, differentiable
    rows: Tensor  # (P,) loss of each query against all keys, detached
    columns: Tensor  # (P,) loss of each query's key against all queries, detached
    correct: Tensor  # (P,) bool: no negative key is closer to the query than its positive


class Pool(NamedTuple):
    """Queries and keys of all ranks, without gradient; Q and K count them over all ranks."""

    queries: Tensor  # (Q, E)
    keys: Tensor  # (K, E)
    query_groups: Tensor  # (Q,)
    key_groups: Tensor  # (K,)
    positives: Tensor  # (Q,) rows of ``keys``
    own_queries: slice  # where this rank's lie
    own_keys: slice
    lengths: list[tuple[int, int]]  # queries and keys of each rank


def gather_pool(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    ranks: ProcessGroup | None,
) -> Pool:
    """Exchange lengths, vectors, and groups with positives over ``ranks``: three collectives."""
    own = (len(queries), len(keys))
    if ranks is None:
        alone = queries.detach(), keys.detach(), query_groups, key_groups, positives
        return Pool(*alone, slice(0, own[0]), slice(0, own[1]), [own])
    every = torch.empty((ranks.size(), 2), dtype=torch.int64, device=queries.device)
    dist.all_gather_single(every, torch.tensor([own], device=queries.device), group=ranks)
    lengths, rank = [(int(p), int(r)) for p, r in every.tolist()], ranks.rank()
    first_query, first_key = (sum(pair[side] for pair in lengths[:rank]) for side in (0, 1))
    all_queries, all_keys = gather_rows(queries.detach(), keys.detach(), lengths, ranks)
    of_queries, of_keys = gather_rows(
        torch.stack([query_groups, positives + first_key], 1),
        torch.stack([key_groups, torch.zeros_like(key_groups)], 1),
        lengths,
        ranks,
    )
    return Pool(
        queries=all_queries,
        keys=all_keys,
        query_groups=of_queries[:, 0],
        key_groups=of_keys[:, 0],
        positives=of_queries[:, 1],
        own_queries=slice(first_query, first_query + own[0]),
        own_keys=slice(first_key, first_key + own[1]),
        lengths=lengths,
    )


def gather_rows(
    of_queries: Tensor, of_keys: Tensor, lengths: list[tuple[int, int]], ranks: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Return one row per query (Q, ...) and one per key (K, ...) of all ranks, in one collective.

    Ranks hold unequal numbers of rows, and unequal shapes hang a collective: so the rows are padded to the
    longest rank and the padding is cut away on arrival.
    """
    longest = max(p + r for p, r in lengths)
    if ranks is None or longest == 0:
        return of_queries, of_keys
    padded = of_queries.new_zeros((longest, *of_queries.shape[1:]))
    padded[: len(of_queries)] = of_queries
    padded[len(of_queries) : len(of_queries) + len(of_keys)] = of_keys
    gathered = padded.new_empty((ranks.size() * longest, *padded.shape[1:]))
    dist.all_gather_single(gathered, padded, group=ranks)
    every = gathered.view(ranks.size(), *padded.shape)
    return (
        torch.cat([rows[:p] for rows, (p, _) in zip(every, lengths, strict=True)]),
        torch.cat([rows[p : p + r] for rows, (p, r) in zip(every, lengths, strict=True)]),
    )
