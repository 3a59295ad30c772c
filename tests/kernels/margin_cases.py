"""What the tests of the margin losses share: data, one call for every implementation, and the rule of errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from kernels.margin import MarginForm, MarginLoss, adaptive_margin_loss, in_batch_margin_loss

FORMS = {
    "hinge": MarginForm("hinge", 0.7, 0.05),
    "hinge, clipped": MarginForm("hinge", 2.0, -0.1, -0.2, 0.6),
    "squared hinge": MarginForm("squared_hinge", 1.3),
    "softplus": MarginForm("softplus", 0.5, 0.1, tau=0.2),
    "fixed": MarginForm("fixed", 3.0, 0.3),
    "mse": MarginForm("mse", 0.8, 0.0, None, 1.0),
}


class Triplets(NamedTuple):
    """Explicit negatives."""

    anchors: Tensor
    positives: Tensor
    vectors: Tensor
    negatives: Tensor
    teacher_gaps: Tensor
    weights: Tensor


class Rows(NamedTuple):
    """Negatives in the batch, of one process or one rank."""

    anchors: Tensor
    positives: Tensor
    teacher_anchors: Tensor
    teacher_positives: Tensor
    groups: Tensor
    weights: Tensor


def unit(generator: torch.Generator, *shape: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def make_triplets(rows: int, most: int, vectors: int = 9, width: int = 5, absent: float = 0.3) -> Triplets:
    generator = torch.Generator().manual_seed(rows * 31 + most)
    negatives = torch.randint(vectors, (rows, most), generator=generator)
    negatives[torch.rand(rows, most, generator=generator) < absent] = -1
    return Triplets(
        unit(generator, rows, width),
        unit(generator, rows, width),
        unit(generator, vectors, width),
        negatives,
        torch.randn(rows, most, generator=generator, dtype=torch.float64),
        torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1,
    )


def make_rows(rows: int, groups: str = "some", width: int = 5, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(rows * 17 + seed)
    anchors, of_teacher = unit(generator, rows, width), unit(generator, rows, 3)
    number = {
        "none": torch.arange(rows),
        "some": torch.randint(1 + rows // 2, (rows,), generator=generator),
        "all": torch.zeros(rows, dtype=torch.long),
    }[groups]
    return Rows(
        anchors,
        normalize(anchors + unit(generator, rows, width), dim=1),
        of_teacher,
        normalize(of_teacher + 0.5 * unit(generator, rows, 3), dim=1),
        number,
        torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1,
    )


class Result(NamedTuple):
    """The loss and its gradients."""

    total: Tensor
    rows: Tensor
    correct: Tensor
    gaps: Tensor
    gradients: tuple[Tensor, ...]


def result_of(loss: MarginLoss, inputs: tuple[Tensor, ...]) -> Result:
    gradients = torch.autograd.grad(loss.total, inputs)
    return Result(loss.total.detach(), loss.rows, loss.correct, torch.stack(loss.gaps), gradients)


def solve(
    data: Triplets | Rows,
    form: MarginForm,
    implementation: str | Callable[..., MarginLoss],
    *,
    dtype: torch.dtype = torch.float64,
    ranks: ProcessGroup | None = None,
) -> Result:
    """The loss of ``data`` in ``dtype`` by a name, or by a function of the implementations' own signature."""
    count = 3 if isinstance(data, Triplets) else 2
    inputs = tuple(part.to(dtype).detach().requires_grad_() for part in data[:count])
    if isinstance(implementation, str):
        rest = {"form": form, "weights": data.weights, "implementation": implementation}
        if isinstance(data, Triplets):
            loss = adaptive_margin_loss(*inputs, *data[3:5], **rest)
        else:
            loss = in_batch_margin_loss(*inputs, *data[2:4], groups=data.groups, ranks=ranks, **rest)
    elif isinstance(data, Triplets):
        loss = implementation(*inputs, *data[3:5], form, data.weights)
    else:
        loss = implementation(*inputs, *data[2:5], form, data.weights, ranks)
    return result_of(loss, inputs)


def assert_equal(result: Result, truth: Result, tolerance: float = 1e-12) -> None:
    pairs = [*zip(result[:4], truth[:4], strict=True), *zip(result[4], truth[4], strict=True)]
    for value, true in pairs:
        assert value.shape == true.shape
        torch.testing.assert_close(value.double(), true.double(), rtol=tolerance, atol=tolerance)


def rounded(data: Triplets | Rows, dtype: torch.dtype) -> Triplets | Rows:
    """``data`` with vectors that ``dtype`` can hold, in float64."""
    count = 3 if isinstance(data, Triplets) else 2
    return type(data)(*(part.to(dtype).double() for part in data[:count]), *data[count:])


# Beyond torch's own error in that dtype, relative to the norm of what is compared: a few roundings.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.float16: 5e-4,
    torch.bfloat16: 4e-3,
}


def assert_no_worse_than_torch(
    data: Triplets | Rows,
    form: MarginForm,
    implementation: str | Callable[..., MarginLoss],
    dtype: torch.dtype,
) -> Result:
    """Hold an implementation's error against float64 to that of dense torch in ``dtype``, plus a tolerance."""
    data = rounded(data, dtype)
    truth = solve(data, form, "reference")
    torchs, result = (
        solve(data, form, "reference", dtype=dtype),
        solve(data, form, implementation, dtype=dtype),
    )
    assert result.total.dtype == torch.promote_types(dtype, torch.float32)
    assert all(gradient.dtype == dtype for gradient in result.gradients)
    assert torch.equal(result.correct, truth.correct)
    assert torch.equal(result.gaps[:2], truth.gaps[:2])  # counts
    # Losses and statistics are never rounded to the inputs' dtype.
    for value, of_torch, true, tolerance in (
        *(
            (*of, TOLERANCES[result.rows.dtype])
            for of in zip(*map(_losses, (result, torchs, truth)), strict=True)
        ),
        *(
            (*of, TOLERANCES[dtype])
            for of in zip(*(of.gradients for of in (result, torchs, truth)), strict=True)
        ),
    ):
        assert value.shape == true.shape
        norm = max(float(true.double().norm()), 1e-30)
        error, allowed = (float((found.double() - true).norm()) / norm for found in (value, of_torch))
        assert error <= allowed + tolerance
    return result


def _losses(result: Result) -> tuple[Tensor, ...]:
    return result.total, result.rows, result.gaps


def formula(form: MarginForm, student: float, teacher: float) -> float:
    """METHODS: the loss of one entry, one number at a time."""
    if form.kind == "fixed":
        return max(0.0, form.offset - student)
    target = form.scale * teacher + form.offset
    target = target if form.minimum is None else max(target, form.minimum)
    target = target if form.maximum is None else min(target, form.maximum)
    missing = target - student
    return {
        "hinge": max(0.0, missing),
        "squared_hinge": max(0.0, missing) ** 2,
        "softplus": form.tau * math.log1p(math.exp(missing / form.tau)),
        "mse": missing**2,
    }[form.kind]


def entries(data: Triplets | Rows) -> list[list[tuple[float, float]]]:
    """(student's gap, teacher's gap) of every negative of every row."""
    if isinstance(data, Triplets):
        return [
            [
                (float(a @ p - a @ data.vectors[n]), float(gap))
                for n, gap in zip(numbers.tolist(), gaps, strict=True)
                if n >= 0
            ]
            for a, p, numbers, gaps in zip(*data[:2], data.negatives, data.teacher_gaps, strict=True)
        ]
    student, teacher = data.anchors @ data.positives.T, data.teacher_anchors @ data.teacher_positives.T
    numbers = range(len(data.anchors))
    return [
        [
            (float(student[i, i] - student[i, j]), float(teacher[i, i] - teacher[i, j]))
            for j in numbers
            if data.groups[i] != data.groups[j]
        ]
        for i in numbers
    ]
