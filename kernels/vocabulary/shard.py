"""How the vocabulary is cut over ranks, and how what each part knows of a row is put together.

Of a row's logits z over any part of the vocabulary three numbers are enough:

    m = max z      s = sum exp(z - m)      t = z of the target, -inf where it lies in another part

and those of two parts make those of both: m = max(m1, m2), s = s1 exp(m1 - m) + s2 exp(m2 - m),
t = max(t1, t2). Over the whole vocabulary loss = (m - t) + log s: for a target that is far ahead m - t is
exactly 0 and no digit is lost. So a part may be a tile of one rank's table or a whole rank's table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Shard(NamedTuple):
    """This rank's rows of the table: the ids from ``first`` on, ``counted`` of them; the rest is padding."""

    first: int
    counted: int
    ranks: ProcessGroup | None  # None also where the group is this process alone


def shard_of(rows: int, ranks: ProcessGroup | None, vocabulary: int | None) -> Shard:
    """Return the shard of this rank, whose part of the table has ``rows`` rows.

    Raises ValueError where ``rows`` is not ceil(``vocabulary`` / ranks).
    """
    size = 1 if ranks is None else ranks.size()
    vocabulary = rows * size if vocabulary is None else vocabulary
    if vocabulary < 1 or rows != -(-vocabulary // size):
        raise ValueError(
            f"a table of {rows} rows on each of {size} ranks does not hold a vocabulary of {vocabulary}: "
            f"each needs {-(-vocabulary // size)}"
        )
    first = 0 if ranks is None else ranks.rank() * rows
    return Shard(first, min(rows, max(0, vocabulary - first)), ranks if size > 1 else None)


def nothing_known(of_rows: Tensor) -> Tensor:
    """Return ``of_rows`` (3, M), filled with the numbers of a part without ids."""
    of_rows.fill_(-torch.inf)[1] = 0
    return of_rows


def gather_parts(own: Tensor, ranks: ProcessGroup | None) -> Tensor:
    """(3, M) what this rank knows of every row -> (ranks, 3, M); one collective, the same on every rank."""
    if ranks is None or own.numel() == 0:
        return own[None]
    every = own.new_empty((ranks.size(), *own.shape))
    dist.all_gather_single(every.view(-1, own.shape[1]), own.contiguous(), group=ranks)
    return every


def join_parts(parts: Tensor) -> Tensor:
    """(parts, 3, M) the numbers m, s, t of every part -> (3, M) those of all of them together."""
    largest, sums, targets = parts.unbind(1)
    most = largest.amax(0)
    return torch.stack([most, (sums * (largest - most).exp()).sum(0), targets.amax(0)])
