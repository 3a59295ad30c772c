"""The libraries of row.h, loaded by ctypes: from tensors to pointers, and one call on the tensors' device."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from kernels.margin.cuda.build import cpu_library, cuda_library
from kernels.margin.form import MarginForm

KINDS: Final = ("hinge", "squared_hinge", "softplus", "fixed", "mse")  # margin::Kind
DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # margin::Dtype

_POINTER, _INTEGER, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Rows(ctypes.Structure):
    """margin::Rows, field by field."""

    _fields_ = [
        *((name, _POINTER) for name in ("anchors", "positives", "vectors")),
        *((name, _INTEGER) for name in ("anchor_stride", "positive_stride", "vector_stride")),
        *((name, _INTEGER) for name in ("rows", "most", "width")),
        *((name, _POINTER) for name in ("negatives", "teacher_gaps", "weights")),
        ("kind", _INTEGER),
        *((name, _REAL) for name in ("scale", "offset", "minimum", "maximum", "tau")),
        *((name, _POINTER) for name in ("losses", "correct", "sums", "slopes", "of_anchors", "of_positives")),
        *((name, _INTEGER) for name in ("wanted", "threads")),
    ]


class Vectors(ctypes.Structure):
    """margin::Vectors, field by field."""

    _fields_ = [
        ("anchors", _POINTER),
        *((name, _INTEGER) for name in ("anchor_stride", "most", "width", "count")),
        *((name, _POINTER) for name in ("slopes", "of_vectors", "places", "starts")),
        ("threads", _INTEGER),
    ]


class Solution(NamedTuple):
    """What is found for the rows; slopes and gradients have no rows where none is wanted."""

    losses: Tensor  # (Q,) float32 or wider
    correct: Tensor  # (Q,) bool
    sums: Tensor  # (Q, 6) float64, the columns of GapSums
    slopes: Tensor  # (Q, K) d total / d Ds, as wide as the losses
    of_anchors: Tensor  # (Q, E)
    of_positives: Tensor  # (Q, E)


def empty_solution(anchors: Tensor, negatives: Tensor, wanted: bool) -> Solution:
    """A solution to be filled, of the right shapes and dtypes."""
    rows, width = anchors.shape
    wide = torch.promote_types(anchors.dtype, torch.float32)
    kept = rows if wanted else 0
    return Solution(
        anchors.new_empty(rows, dtype=wide),
        anchors.new_empty(rows, dtype=torch.bool),
        anchors.new_empty((rows, 6), dtype=torch.float64),
        anchors.new_empty((kept, negatives.shape[1]), dtype=wide),
        anchors.new_empty((kept, width)),
        anchors.new_empty((kept, width)),
    )


def solve_rows(
    anchors: Tensor,
    positives: Tensor,
    vectors: Tensor,
    negatives: Tensor,
    teacher_gaps: Tensor,
    weights: Tensor,
    form: MarginForm,
    wanted: bool,
    library: Any = None,
) -> Solution:
    """Losses and gradients of the rows by the library of their device (or ``library``)."""
    solution = empty_solution(anchors, negatives, wanted)
    if not len(anchors):
        return solution
    sides = [part if part.stride(1) == 1 else part.contiguous() for part in (anchors, positives, vectors)]
    columns = [
        negatives.contiguous(),
        *(p.to(solution.losses.dtype).contiguous() for p in (teacher_gaps, weights)),
    ]
    problem = Rows(
        *(part.data_ptr() for part in sides),
        *(part.stride(0) for part in sides),
        *(*negatives.shape, anchors.shape[1]),
        *(part.data_ptr() for part in columns),
        KINDS.index(form.kind),
        *(form.scale, form.offset),
        -math.inf if form.minimum is None else form.minimum,
        math.inf if form.maximum is None else form.maximum,
        form.tau,
        *(part.data_ptr() for part in solution),
        *(wanted, torch.get_num_threads()),
    )
    _call("calque_margin_rows", problem, anchors, library)
    return solution


def solve_vectors(
    anchors: Tensor, negatives: Tensor, slopes: Tensor, count: int, library: Any = None
) -> Tensor:
    """The gradient of ``count`` vectors for slopes (Q, K), by the library of their device (or ``library``)."""
    result = anchors.new_empty((count, anchors.shape[1]))
    if not count:
        return result
    anchors = anchors if anchors.stride(1) == 1 else anchors.contiguous()
    slopes = slopes.contiguous()
    places, starts = _places(negatives.contiguous(), count, library)
    problem = Vectors(
        anchors.data_ptr(),
        *(anchors.stride(0), negatives.shape[1], anchors.shape[1], count),
        *(part.data_ptr() for part in (slopes, result, places, starts)),
        torch.get_num_threads(),
    )
    _call("calque_margin_vectors", problem, anchors, library)
    return result


def _places(negatives: Tensor, count: int, library: Any) -> tuple[Tensor, Tensor]:
    """The places i * K + k of every vector in ascending order, end to end, and where each vector's begin (N + 1,)."""
    if negatives.device.type == "cpu" and library is None:
        places = torch.empty_like(negatives)
        starts = negatives.new_empty(count + 1)
        pointers = (part.data_ptr() for part in (negatives, places, starts))
        negatives_at, places_at, starts_at = pointers
        load_cpu().calque_margin_places(negatives_at, negatives.numel(), count, places_at, starts_at)
        return places, starts
    numbers, places = negatives.flatten().sort(stable=True)
    return places, torch.searchsorted(numbers, torch.arange(count + 1, device=negatives.device))


@cache
def load_cpu() -> ctypes.CDLL:
    """Build or find the library of this processor, and load it. Raises ImplementationUnavailable."""
    library = declare(ctypes.CDLL(str(cpu_library())))
    library.calque_margin_places.argtypes = [_POINTER, _INTEGER, _INTEGER, _POINTER, _POINTER]
    library.calque_margin_places.restype = None
    return library


@cache
def load_gpu(capability: tuple[int, int]) -> ctypes.CDLL:
    """Build or find the library of GPUs of ``capability``, and load it. Raises ImplementationUnavailable."""
    return declare(ctypes.CDLL(str(cuda_library(capability))))


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes what the two launchers take."""
    for name, problem in (("calque_margin_rows", Rows), ("calque_margin_vectors", Vectors)):
        getattr(library, name).argtypes = [ctypes.POINTER(problem), _INTEGER, ctypes.c_int, _POINTER]
    return library


def _call(name: str, problem: ctypes.Structure, anchors: Tensor, library: Any) -> None:
    number = DTYPES.index(anchors.dtype)
    if anchors.device.type == "cpu":
        error = getattr(library or load_cpu(), name)(ctypes.byref(problem), number, 0, None)
    else:
        device = anchors.get_device()
        library = library or load_gpu(torch.cuda.get_device_capability(device))
        stream = torch.cuda.current_stream(device).cuda_stream
        with torch.cuda.device(device):
            error = getattr(library, name)(ctypes.byref(problem), number, device, stream)
    if error:
        raise RuntimeError(f"{name}: error {error} for {anchors.dtype} on {anchors.device}")
