"""alignment_loss: symmetric contrastive loss of every rank's pairs against the pool of all ranks.

    S_ij = s <q_i, k_j>,  s = inverse temperature, p(i) = the key that is query i's positive
    S_ip = s (<q_i, k_p> - m) for the positive, m = additive margin
    X    = entries (i, j != p(i)) of one group: false negatives, removed from both denominators
    row_i    = softplus(logsumexp_{j != p(i), not X} S_ij - S_ip(i))       query i against all keys
    column_i = softplus(logsumexp_{l != i, not X} S_lp(i) - S_ip(i))       its key against all queries
    total    = sum_i w_i (row_i + column_i) / 2                            over this rank's pairs

The logarithm is taken over the negatives only and the positive enters through softplus: with easy pairs at
s = 100 the usual log-softmax loses every digit in float32. Logits are float32 or wider whatever the inputs.
A row without negatives has loss 0 and gradient 0. Keys that are no query's positive (hard negatives) join
the row direction only.

With widths, the loss is the weighted sum of the losses of prefixes of the vectors, each made unit length again,
and all prefixes are made in one visit of the vectors.

Across ranks the sum of ``total`` over ranks is the loss of the whole pool; each rank's gradient with respect
to its own queries and keys is complete (that of the sum, not only of its own share), and the gradient with
respect to the inverse temperature is a share: over ranks the shares add up. All collectives run in the
forward, with equal shapes; every rank of the group must call, also with no pair at all.

Sources: InfoNCE, van den Oord et al. 2018; both directions with a learned temperature, Radford et al. 2021;
additive margin, Yang et al. 2019; prefixes, Kusupati et al. 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels.alignment.pool import AlignmentLoss
from kernels.alignment.reference import alignment_loss_reference
from kernels.alignment.solution import Passes, solve
from kernels.alignment.streaming import Streaming
from kernels.implementation import choose, triton_runs_on

__all__ = ["AlignmentLoss", "alignment_loss"]


def alignment_loss(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    inverse_temperature: Tensor,
    *,
    query_groups: Tensor,
    key_groups: Tensor,
    weights: Tensor,
    additive_margin: float = 0.0,
    widths: Sequence[tuple[int, float]] | None = None,
    ranks: ProcessGroup | None = None,
    implementation: str = "auto",
) -> AlignmentLoss:
    """Return the alignment loss of this rank's P queries and R keys in the pool of all ``ranks``.

    ``queries`` (P, E) and ``keys`` (R, E) are unit vectors of one dtype; ``positives`` (P,) is the local row
    of each query's key, no key twice; ``query_groups`` (P,) and ``key_groups`` (R,) are int64; ``weights``
    (P,) get no gradient; ``inverse_temperature`` () is positive and the same on every rank. ``additive_margin``
    is taken from the positive's cosine. ``widths`` are prefixes and the weights of their losses, shortest
    first: ``rows`` and ``columns`` are then weighted sums too, and ``correct`` speaks of the longest. ``ranks``
    None is one process. Raises ValueError for shapes, dtypes, positives or widths that do not fit together.
    """
    _check(queries, keys, positives, inverse_temperature, query_groups, key_groups, weights, widths)
    on_gpu = queries.device.type == "cuda"
    available = ["reference", "streaming"]
    if triton_runs_on(queries.device) and queries.dtype != torch.float64:
        available.append("triton")
    best = "triton" if on_gpu and "triton" in available else "streaming"
    chosen = choose("alignment_loss", implementation, available, best)
    of_pairs = (
        queries,
        keys,
        positives,
        inverse_temperature,
        query_groups,
        key_groups,
        weights.detach(),
        ranks,
    )
    how = (float(additive_margin), None if widths is None else tuple((int(w), float(c)) for w, c in widths))
    with torch.autocast(queries.device.type, enabled=False):
        if chosen == "reference":
            return alignment_loss_reference(*of_pairs, *how)
        return solve(_passes(chosen), *of_pairs, *how)


def _passes(chosen: str) -> Passes:
    if chosen == "streaming":
        return Streaming()
    from kernels.alignment.fused_triton import Fused  # only here: Triton need not be installed

    return Fused()


def _check(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    inverse_temperature: Tensor,
    query_groups: Tensor,
    key_groups: Tensor,
    weights: Tensor,
    widths: Sequence[tuple[int, float]] | None,
) -> None:
    """Raise ValueError for arguments that do not fit together."""
    pairs, key_count = len(queries), len(keys)
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} are not (P, E) and (R, E)"
        )
    if queries.dtype != keys.dtype:
        raise ValueError(f"queries and keys differ in dtype: {queries.dtype}, {keys.dtype}")
    if inverse_temperature.ndim != 0:
        raise ValueError(f"the inverse temperature is one number, not {tuple(inverse_temperature.shape)}")
    for name, column, length in (
        ("positives", positives, pairs),
        ("query_groups", query_groups, pairs),
        ("key_groups", key_groups, key_count),
        ("weights", weights, pairs),
    ):
        if column.shape != (length,):
            raise ValueError(f"{name} {tuple(column.shape)} is not ({length},)")
    if pairs:
        ordered = positives.sort().values
        own = (ordered[0] >= 0) & (ordered[-1] < key_count) & (ordered[1:] != ordered[:-1]).all()
        said = "positives: every query needs a key of its own among this rank's keys"
        if positives.is_cuda:
            torch._assert_async(own, said)  # without waiting for all that the GPU has still to do
        elif not own:
            raise ValueError(said)
    if widths is not None:
        lengths = [width for width, _ in widths]
        if not lengths or lengths != sorted(set(lengths)) or lengths[0] < 1 or lengths[-1] > queries.shape[1]:
            raise ValueError(f"widths {lengths} do not grow from at least 1 to at most {queries.shape[1]}")
