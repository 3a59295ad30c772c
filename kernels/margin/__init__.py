"""Adaptive margin losses: a student's gap between positive and negative against that of a frozen teacher.

    Ds = <a, p> - <a, n>            the student's gap, vectors of unit length
    Dt = t(a, p) - t(a, n)          the teacher's gap, no gradient
    row_i = mean over i's negatives of f(Dt, Ds);    total = sum_i w_i row_i

``adaptive_margin_loss`` takes the negatives of every anchor by number and the teacher's gaps as they are;
``in_batch_margin_loss`` takes every other row's positive as a negative, except rows of one group, and makes the
teacher's gaps from the teacher's vectors. f and its constants are a ``MarginForm``. Gaps are float32 or wider
whatever the inputs. Gradients are made in the forward and stored; the backward only scales them, so that no
collective runs inside autograd.

Across ranks (``in_batch_margin_loss``) the pool is that of all ranks: the sum of ``total`` over ranks is its loss,
and each rank's gradient with respect to its own vectors is complete. Every rank of the group must call, also
without any row.

Source: CN patent application of 2020-08-14 (adaptive difference loss against a pre-trained scoring model);
MarginMSE: Hofstatter et al., 2020.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels.implementation import ImplementationUnavailable, choose, triton_runs_on
from kernels.margin import reference, streaming
from kernels.margin.cuda import build
from kernels.margin.form import GapSums, Kind, MarginForm, MarginLoss

logger: Final = logging.getLogger(__name__)

__all__ = ["GapSums", "Kind", "MarginForm", "MarginLoss", "adaptive_margin_loss", "in_batch_margin_loss"]

_NATIVE_FROM: Final = (
    1 << 20
)  # numbers in the negatives from which "auto" takes native: a few ms of streaming


def adaptive_margin_loss(
    anchors: Tensor,
    positives: Tensor,
    vectors: Tensor,
    negatives: Tensor,
    teacher_gaps: Tensor,
    *,
    form: MarginForm,
    weights: Tensor,
    implementation: str = "auto",
) -> MarginLoss:
    """Return the margin loss of Q anchors against up to K negatives each.

    ``anchors`` (Q, E), ``positives`` (Q, E) and ``vectors`` (N, E) are unit vectors of one dtype; ``negatives``
    (Q, K) int64 are rows of ``vectors``, -1 where an anchor has fewer; ``teacher_gaps`` (Q, K) and ``weights``
    (Q,) get no gradient. "native" and "cuda" are one source in C++ (kernels.margin.cuda), built when first chosen.
    Raises ValueError for shapes, dtypes or numbers that do not fit together.
    """
    _check_vectors(anchors, positives)
    if vectors.ndim != 2 or vectors.shape[1] != anchors.shape[1] or vectors.dtype != anchors.dtype:
        raise ValueError(
            f"vectors {tuple(vectors.shape)} {vectors.dtype} are not (N, {anchors.shape[1]}) {anchors.dtype}"
        )
    if negatives.ndim != 2 or len(negatives) != len(anchors):
        raise ValueError(f"negatives {tuple(negatives.shape)} are not ({len(anchors)}, K)")
    if teacher_gaps.shape != negatives.shape:
        raise ValueError(f"teacher_gaps {tuple(teacher_gaps.shape)} are not {tuple(negatives.shape)}")
    if weights.shape != (len(anchors),):
        raise ValueError(f"weights {tuple(weights.shape)} is not ({len(anchors)},)")
    if negatives.numel() and not -1 <= int(negatives.min()) <= int(negatives.max()) < len(vectors):
        raise ValueError(f"negatives: numbers from -1 (absent) to {len(vectors) - 1} are rows of the vectors")
    available = [*_available(anchors), *_compiled(anchors)]
    best = "triton" if anchors.is_cuda and "triton" in available else "streaming"
    if implementation == "auto" and "native" in available:
        large = negatives.numel() * anchors.shape[1] >= _NATIVE_FROM
        best = "native" if large and anchors.dtype != torch.float16 and _native_loads() else "streaming"
    explicit = _explicit(choose("adaptive_margin_loss", implementation, available, best))
    with torch.autocast(anchors.device.type, enabled=False):
        return explicit(anchors, positives, vectors, negatives, teacher_gaps.detach(), form, weights.detach())


def in_batch_margin_loss(
    anchors: Tensor,
    positives: Tensor,
    teacher_anchors: Tensor,
    teacher_positives: Tensor,
    *,
    groups: Tensor,
    form: MarginForm,
    weights: Tensor,
    ranks: ProcessGroup | None = None,
    implementation: str = "auto",
) -> MarginLoss:
    """Return the margin loss of this rank's Q rows, against the positives of all other rows of all ``ranks``.

    ``anchors`` and ``positives`` (Q, E) are unit vectors of one dtype, ``teacher_anchors`` and
    ``teacher_positives`` (Q, Et) those of the teacher; ``groups`` (Q,) int64, rows of one group are never each
    other's negatives; ``weights`` (Q,). The teacher's vectors and the weights get no gradient. ``ranks`` None is
    one process. Raises ValueError for shapes or dtypes that do not fit together.
    """
    _check_vectors(anchors, positives)
    rows = len(anchors)
    if (
        teacher_anchors.ndim != 2
        or len(teacher_anchors) != rows
        or teacher_anchors.shape != teacher_positives.shape
    ):
        raise ValueError(
            f"the teacher's vectors {tuple(teacher_anchors.shape)} and {tuple(teacher_positives.shape)} are not"
            f" ({rows}, Et)"
        )
    for name, column in (("groups", groups), ("weights", weights)):
        if column.shape != (rows,):
            raise ValueError(f"{name} {tuple(column.shape)} is not ({rows},)")
    available = _available(anchors)
    best = "triton" if anchors.is_cuda and "triton" in available else "streaming"
    in_batch = _in_batch(choose("in_batch_margin_loss", implementation, available, best))
    with torch.autocast(anchors.device.type, enabled=False):
        return in_batch(
            anchors,
            positives,
            teacher_anchors.detach(),
            teacher_positives.detach(),
            groups,
            form,
            weights.detach(),
            ranks,
        )


def _available(anchors: Tensor) -> list[str]:
    """What both losses offer for such vectors. Triton has no float64 here: that is for holding others to."""
    triton = triton_runs_on(anchors.device) and anchors.dtype != torch.float64
    return ["reference", "streaming", *(["triton"] if triton else [])]


def _compiled(anchors: Tensor) -> list[str]:
    """What the explicit loss offers beside, where the machine has the compiler for it."""
    if anchors.is_cuda:
        return ["cuda"] if torch.version.hip is None and build.cuda_compiler() else []
    return ["native"] if anchors.device.type == "cpu" and build.cpu_compiler() else []


@cache
def _native_loads() -> bool:
    """Whether native can be had for "auto", which may do without it and says why."""
    from kernels.margin.cuda.library import load_cpu

    try:
        load_cpu()
    except (ImplementationUnavailable, OSError) as reason:
        logger.warning("adaptive_margin_loss: auto does without the native implementation: %s", reason)
        return False
    return True


# Triton need not be installed, and a library need not be built: they are imported by those who choose them.
def _explicit(chosen: str) -> Callable[..., MarginLoss]:
    if chosen in ("native", "cuda"):
        from kernels.margin.cuda import operator

        return operator.explicit
    if chosen == "triton":
        from kernels.margin import explicit_triton

        return explicit_triton.explicit
    return reference.explicit if chosen == "reference" else streaming.explicit


def _in_batch(chosen: str) -> Callable[..., MarginLoss]:
    if chosen == "triton":
        from kernels.margin import in_batch_triton

        return in_batch_triton.in_batch
    return reference.in_batch if chosen == "reference" else streaming.in_batch


def _check_vectors(anchors: Tensor, positives: Tensor) -> None:
    if anchors.ndim != 2 or anchors.shape != positives.shape:
        raise ValueError(
            f"anchors {tuple(anchors.shape)} and positives {tuple(positives.shape)} are not (Q, E)"
        )
    if anchors.dtype != positives.dtype:
        raise ValueError(f"anchors and positives differ in dtype: {anchors.dtype}, {positives.dtype}")
