"""vocabulary_loss: linear layer and cross entropy over the vocabulary at the predicted positions.

    z = hidden @ table^T + bias        loss_i = logsumexp_v z_iv - z_i,target(i)        total = sum_i w_i loss_i

M predicted positions, D width, V vocabulary. The matrix products run in the inputs' dtype (with the float32
accumulation of the hardware); everything after them is float32, because exp and log in bfloat16 are off by
several hundredths (float64 inputs stay float64).

The table may be cut over the t ranks of a process group: rank r holds ids [r ceil(V / t), (r + 1) ceil(V / t)),
the last ranks fill up with rows of padding, which are never counted. Hidden and targets are then equal on all
of them, and so are the losses; each rank's gradient of hidden is whole, and that of table and bias is of its
own rows. Every rank of the group must call. The gradients are made in the forward, so but for ``reference`` no
collective runs in the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels.implementation import choose, triton_runs_on
from kernels.vocabulary.reference import vocabulary_loss_reference
from kernels.vocabulary.shard import shard_of
from kernels.vocabulary.streaming import vocabulary_loss_streaming

__all__ = ["VocabularyLoss", "vocabulary_loss"]


class VocabularyLoss(NamedTuple):
    """What ``vocabulary_loss`` returns."""

    total: Tensor  # () weighted sum, float32 (float64 for float64 inputs), differentiable
    losses: Tensor  # (M,) of the same dtype, without gradient
    correct: Tensor  # (M,) bool: no id scores higher than the target; without gradient


def vocabulary_loss(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    ranks: ProcessGroup | None = None,
    vocabulary: int | None = None,
    implementation: str = "auto",
) -> VocabularyLoss:
    """Return the cross entropy of ``targets`` (M,) under ``hidden`` (M, D), ``table`` (V, D), ``bias`` (V,).

    ``hidden``, ``table`` and ``bias`` have one dtype. ``weights`` (M,) of the total get no gradient; None stands for
    1 each. Without predicted positions (M = 0) the total is 0 and still joins hidden, table and bias to the graph,
    with gradient zero. Under ZeRO-3 call it inside the forward of the module that owns the table, which is whole only
    there. The total's gradients can be asked for once.

    With ``ranks`` the table and bias are this rank's ceil(``vocabulary`` / ranks) rows; ``targets`` name ids
    of the whole vocabulary. ``vocabulary`` None counts every row of every rank.

    Beside the dense ``reference`` and the tiled ``streaming`` and ``triton`` there is ``torch``, torch's own
    function in chunks of rows, where it is exact. Raises ValueError for shapes or dtypes that do not fit together
    and ImplementationUnavailable for an implementation that can not run here.
    """
    if hidden.ndim != 2 or table.ndim != 2 or hidden.shape[1] != table.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and table {tuple(table.shape)} are not (M, D) and (V, D)"
        )
    if bias.shape != table.shape[:1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"bias {tuple(bias.shape)} or targets {tuple(targets.shape)} do not fit "
            f"hidden {tuple(hidden.shape)} and table {tuple(table.shape)}"
        )
    if weights is None:
        weights = torch.ones(len(targets), device=hidden.device)
    if weights.shape != targets.shape:
        raise ValueError(f"weights {tuple(weights.shape)} are not one for each of {len(targets)} targets")
    if not hidden.dtype == table.dtype == bias.dtype:
        raise ValueError(
            f"hidden, table and bias differ in dtype: {hidden.dtype}, {table.dtype}, {bias.dtype}"
        )
    shard = shard_of(len(table), ranks, vocabulary)
    with_triton = triton_runs_on(hidden.device)
    chosen = choose(
        "vocabulary_loss",
        implementation,
        ("reference", "streaming", "torch", *(["triton"] if with_triton else [])),
        "triton" if with_triton and hidden.device.type == "cuda" else "streaming",
    )
    with torch.autocast(hidden.device.type, enabled=False):
        return VocabularyLoss(*_named(chosen)(hidden, table, bias, targets, weights.detach(), shard))


def _named(implementation: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    if implementation == "reference":
        return vocabulary_loss_reference
    if implementation == "triton":
        from kernels.vocabulary.fused_triton import vocabulary_loss_triton

        return vocabulary_loss_triton
    if implementation == "torch":
        from kernels.vocabulary.torch_chunks import vocabulary_loss_torch

        return vocabulary_loss_torch
    return vocabulary_loss_streaming
