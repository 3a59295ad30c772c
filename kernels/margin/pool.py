"""The pool of the in-batch margin loss: the rows of all ranks, end to end in the order of the ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels.alignment.pool import gather_rows


class Pool(NamedTuple):
    """R rows of all ranks, without gradient."""

    anchors: Tensor  # (R, E)
    positives: Tensor  # (R, E)
    teacher_anchors: Tensor  # (R, Et)
    teacher_positives: Tensor  # (R, Et)
    groups: Tensor  # (R,)
    weights: Tensor  # (R,)
    own: slice  # this rank's rows


def gather_pool(
    anchors: Tensor,
    positives: Tensor,
    teacher_anchors: Tensor,
    teacher_positives: Tensor,
    groups: Tensor,
    weights: Tensor,
    ranks: ProcessGroup | None,
) -> Pool:
    """Exchange counts, vectors, the teacher's vectors, groups and weights over ``ranks``: five collectives."""
    rows = len(anchors)
    if ranks is None:
        counts, rank = [rows], 0
    else:
        every = torch.empty(ranks.size(), dtype=torch.int64, device=anchors.device)
        dist.all_gather_single(every, torch.tensor([rows], device=anchors.device), group=ranks)
        counts, rank = every.tolist(), ranks.rank()
    lengths = [(count, count) for count in counts]
    all_anchors, all_positives = gather_rows(anchors.detach(), positives.detach(), lengths, ranks)
    of_teacher = gather_rows(teacher_anchors, teacher_positives, lengths, ranks)
    all_groups, _ = gather_rows(groups, groups, lengths, ranks)
    all_weights, _ = gather_rows(weights, weights, lengths, ranks)
    first = sum(counts[:rank])
    return Pool(all_anchors, all_positives, *of_teacher, all_groups, all_weights, slice(first, first + rows))


def negatives_of_rows(groups: Tensor) -> Tensor:
    """(R,) how many rows of the pool are of another group than each."""
    _, number, size = groups.unique(return_inverse=True, return_counts=True)
    return len(groups) - size[number]
