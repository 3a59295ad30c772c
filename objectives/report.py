"""LossReport: a loss as sums and counts per stream, so that a step divides once, by its own whole count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossReport(NamedTuple):
    """Losses of S streams (a stream is one task in one language or pair of languages)."""

    sums: Tensor  # (S,) sum of the losses of each stream
    terms: Tensor  # (S,) int64, how many losses that is
    correct: Tensor  # (S,) int64, how many of them were predicted right


def report_by_stream(losses: Tensor, correct: Tensor, stream: Tensor, streams: int) -> LossReport:
    """Add up ``losses`` (L,) and ``correct`` (L,) by their stream number (L,)."""
    counts = torch.zeros(streams, dtype=torch.int64, device=losses.device)
    return LossReport(
        sums=losses.new_zeros(streams).index_add(0, stream, losses),
        terms=counts.index_add(0, stream, torch.ones_like(stream)),
        correct=counts.index_add(0, stream, correct.long()),
    )
