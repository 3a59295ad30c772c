"""Every implementation of every loss on a GPU, held to the definition in float64: pytest -m gpu tests/kernels.

An implementation may be as far off as dense torch is in the same dtype on the same device, and a few roundings more.
The same tests run on the CPU with what runs there, over a few cases, so that they are known to work themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.alignment import alignment_loss
from kernels.margin import MarginForm, adaptive_margin_loss, in_batch_margin_loss
from kernels.vocabulary import vocabulary_loss

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SCALES = (1.0, 20.0, 100.0)
# Beyond dense torch's own error, relative to the norm: sums in another order, then one rounding of what is returned.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
FORMS = {
    "softplus": MarginForm("softplus", 0.5, 0.1, tau=0.2),
    "squared hinge": MarginForm("squared_hinge", 1.3, 0.0, -0.5, 1.0),
    "mse": MarginForm("mse", 0.8),
}


class Case(NamedTuple):
    """What a loss is called with, in float64 on the CPU, and how its result and gradients are read."""

    differentiable: tuple[Tensor, ...]  # in the dtype that is tried
    rest: tuple[Any, ...]  # as they are
    call: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]  # -> the scalar, and what is reported beside it


class Solution(NamedTuple):
    """What a loss found, as it was returned."""

    total: Tensor
    beside: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]


def solve(case: Case, implementation: str, device: str, dtype: torch.dtype) -> Solution:
    """Losses and gradients of ``case``, whose values ``dtype`` must be able to hold."""
    inputs = [side.to(device, dtype).requires_grad_() for side in case.differentiable]
    rest = [part.to(device) if isinstance(part, Tensor) else part for part in case.rest]
    total, beside = case.call(*inputs, *rest, implementation=implementation)
    return Solution(total.detach(), beside, torch.autograd.grad(total, inputs))


def apart(matrix: Tensor) -> Tensor:
    """The same numbers with other columns between them."""
    wide = matrix.new_full((len(matrix), 2 * matrix.shape[1] + 1), torch.nan)
    wide[:, 1::2] = matrix
    return wide[:, 1::2]


def rounded(side: Tensor, dtype: torch.dtype, strided: bool) -> Tensor:
    side = side.to(dtype).double()
    return apart(side) if strided and side.ndim == 2 else side


# ---- the losses --------------------------------------------------------------------------------------------


def alignment(
    pairs: int, hard: int, width: int, groups: str, strided: bool, scale: float, dtype: torch.dtype
) -> Case:
    generator = torch.Generator().manual_seed(pairs * 97 + hard)
    queries = normalize(torch.randn(pairs, width, generator=generator, dtype=torch.float64))
    positives = torch.randperm(pairs + hard, generator=generator)[:pairs]
    keys = torch.randn(pairs + hard, width, generator=generator, dtype=torch.float64)
    keys[positives] = queries + 0.8 * width**-0.5 * keys[positives]
    numbers = {
        "none": torch.arange(pairs + hard),
        "some": torch.randint(1 + pairs // 2, (pairs + hard,), generator=generator),
        "all": torch.zeros(pairs + hard, dtype=torch.long),
    }[groups]
    weights = torch.rand(pairs, generator=generator) + 0.1

    def call(
        queries: Tensor,
        keys: Tensor,
        positives: Tensor,
        groups: Tensor,
        weights: Tensor,
        *,
        implementation: str,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        wide = torch.promote_types(queries.dtype, torch.float32)
        loss = alignment_loss(
            queries, keys, positives, torch.tensor(scale, dtype=wide, device=queries.device),
            query_groups=groups[positives], key_groups=groups, weights=weights, implementation=implementation,
        )  # fmt: skip
        return loss.total, (loss.rows, loss.columns)

    sides = tuple(rounded(side, dtype, strided) for side in (queries, normalize(keys)))
    return Case(sides, (positives, numbers, weights), call)


def margin(rows: int, negatives: int, width: int, strided: bool, form: str, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(rows * 31 + negatives)
    anchors, positives, vectors = (
        rounded(
            normalize(torch.randn(count, width, generator=generator, dtype=torch.float64)), dtype, strided
        )
        for count in (rows, rows, rows + 3)
    )
    numbers = torch.randint(-1, rows + 3, (rows, negatives), generator=generator)
    gaps = 0.3 * torch.randn(rows, negatives, generator=generator)
    weights = torch.rand(rows, generator=generator) + 0.1

    def call(*sides: Tensor, implementation: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        *given, weights = sides
        loss = adaptive_margin_loss(*given, form=FORMS[form], weights=weights, implementation=implementation)
        return loss.total, (loss.rows, *loss.gaps)

    return Case((anchors, positives, vectors), (numbers, gaps, weights), call)


def in_batch_margin(rows: int, width: int, groups: str, strided: bool, form: str, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(rows * 17 + width)
    sides = [normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64)) for _ in range(4)]
    number = {"none": torch.arange(rows), "some": torch.arange(rows) // 2}[groups]
    weights = torch.rand(rows, generator=generator) + 0.1

    def call(*sides: Tensor, implementation: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        *vectors, groups, weights = sides
        loss = in_batch_margin_loss(
            *vectors, groups=groups, form=FORMS[form], weights=weights, implementation=implementation
        )
        return loss.total, (loss.rows, *loss.gaps)

    students = tuple(rounded(side, dtype, strided) for side in sides[:2])
    return Case(students, (*(side.float() for side in sides[2:]), number, weights), call)


def vocabulary(rows: int, ids: int, width: int, strided: bool, scale: float, dtype: torch.dtype) -> Case:
    generator = torch.Generator().manual_seed(rows * 1009 + ids)
    draw = [
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, width), (ids, width))
    ]
    hidden, table = (rounded(side, dtype, strided) for side in (scale**0.5 * draw[0], width**-0.5 * draw[1]))
    bias = rounded(0.1 * torch.randn(ids, generator=generator), dtype, False)
    targets = torch.randint(ids, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator) / max(1, rows)

    def call(
        hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, *, implementation: str
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = vocabulary_loss(hidden, table, bias, targets, weights, implementation=implementation)
        return loss.total, (loss.losses,)

    return Case((hidden, table, bias), (targets, weights), call)


TABLE: dict[str, tuple[Callable[..., Case], list[tuple[Any, ...]]]] = {
    "alignment": (
        alignment,
        [
            (*shape, scale)
            for shape, scale in product(
                [
                    (0, 0, 8, "none", False), (0, 5, 8, "none", False), (1, 0, 16, "none", False),
                    (1, 1, 16, "none", False), (33, 14, 50, "some", True), (64, 64, 64, "all", False),
                    (257, 31, 129, "some", False), (512, 0, 768, "none", True),
                ],
                SCALES,
            )
        ],
    ),
    "margin": (
        margin,
        [
            (*shape, form)
            for shape, form in product(
                [(0, 3, 8, False), (1, 1, 1, False), (3, 0, 8, False), (17, 5, 50, True), (300, 15, 768, False)],
                FORMS,
            )
        ],
    ),
    "in-batch margin": (
        in_batch_margin,
        [
            (*shape, form)
            for shape, form in product(
                [(0, 8, "none", False), (1, 8, "none", False), (33, 50, "some", True), (257, 128, "some", False)],
                FORMS,
            )
        ],
    ),
    "vocabulary": (
        vocabulary,
        [
            (*shape, scale)
            for shape, scale in product(
                [(0, 11, 8, False), (1, 1, 1, False), (33, 515, 50, True), (130, 5003, 128, False)], SCALES
            )
        ],
    ),
}  # fmt: skip
ON_GPU = {
    "alignment": ("streaming", "triton"),
    "margin": ("streaming", "triton", "cuda"),
    "in-batch margin": ("streaming", "triton"),
    "vocabulary": ("streaming", "triton"),
}


def combinations() -> Iterator[Any]:
    """(loss, arguments, dtype, implementation, device): all on a GPU, three cases of each loss on the CPU."""
    for loss, (_, table) in TABLE.items():
        for arguments, dtype in product(table, DTYPES):
            name = f"{loss}-{'-'.join(map(str, arguments))}-{str(dtype).removeprefix('torch.')}"
            for implementation in ON_GPU[loss]:
                yield pytest.param(
                    loss, arguments, dtype, implementation, "cuda",
                    id=f"{name}-{implementation}-cuda", marks=pytest.mark.gpu,
                )  # fmt: skip
            if arguments in table[1::4]:
                yield pytest.param(loss, arguments, dtype, "streaming", "cpu", id=f"{name}-streaming-cpu")


@pytest.mark.parametrize(("loss", "arguments", "dtype", "implementation", "device"), list(combinations()))
def test_an_implementation_is_as_exact_as_dense_torch_and_the_same_each_time(
    loss: str, arguments: tuple[Any, ...], dtype: torch.dtype, implementation: str, device: str
) -> None:
    case = TABLE[loss][0](*arguments, dtype)
    truth = solve(case, "reference", "cpu", torch.float64)
    dense = solve(case, "reference", device, dtype)
    found = solve(case, implementation, device, dtype)
    assert found.total.dtype == torch.float32 and found.total.device.type == device
    # The head alone has logits in the inputs' dtype: their roundings differ, and what is left of them in a loss.
    of_loss = TOLERANCES[dtype] / 10 if loss == "vocabulary" else TOLERANCES[torch.float32]
    for value, of_dense, true in zip(
        (found.total, *found.beside), (dense.total, *dense.beside), (truth.total, *truth.beside), strict=True
    ):
        assert_no_worse(value, of_dense, true, of_loss * largest_logit(arguments))
    for value, of_dense, true in zip(found.gradients, dense.gradients, truth.gradients, strict=True):
        assert value.dtype == dtype
        assert_no_worse(value, of_dense, true, TOLERANCES[dtype] * largest_logit(arguments) ** 0.5)
    if implementation == "streaming" and device != "cpu":
        return  # index_add_ and torch's products may add in any order there; our kernels may not
    again = solve(case, implementation, device, dtype)
    for value, same in zip((*found.beside, *found.gradients), (*again.beside, *again.gradients), strict=True):
        assert torch.equal(value, same)


def assert_no_worse(value: Tensor, dense: Tensor, true: Tensor, tolerance: float) -> None:
    assert value.shape == true.shape
    norm = max(float(true.norm()), 1e-20)
    error, allowed = (float((side.cpu().double() - true.double()).norm()) / norm for side in (value, dense))
    assert error <= allowed + tolerance, f"{error:.1e} from float64; dense torch {allowed:.1e}"


def largest_logit(arguments: tuple[Any, ...]) -> float:
    """A scale stands last in a case; an error of a logit grows with it."""
    return max(1.0, arguments[-1] / 10) if isinstance(arguments[-1], float) else 1.0


def test_the_rule_notices_an_error() -> None:
    true = torch.randn(50, dtype=torch.float64)
    dense = true.float()
    assert_no_worse(dense, dense, true, 0.0)
    with pytest.raises(AssertionError, match="from float64; dense torch"):
        assert_no_worse(dense * (1 + 1e-5), dense, true, TOLERANCES[torch.float32])


# ---- sizes that only a GPU's memory or patience holds ---------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_alignment_of_more_entries_than_32_bits_count(dtype: torch.dtype) -> None:
    case = alignment(50_000, 0, 64, "none", False, 20.0, dtype)  # 2.5e9 similarities
    found, other = (solve(case, name, "cuda", dtype) for name in ("triton", "streaming"))
    for value, of_other in zip(found.gradients, other.gradients, strict=True):
        torch.testing.assert_close(value, of_other, rtol=0.02, atol=TOLERANCES[dtype])
    torch.testing.assert_close(found.beside, other.beside, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_vocabulary_of_more_logits_than_32_bits_count() -> None:
    case = vocabulary(9_000, 250_002, 64, False, 20.0, torch.bfloat16)
    found, other = (solve(case, name, "cuda", torch.bfloat16) for name in ("triton", "streaming"))
    torch.testing.assert_close(found.beside, other.beside, rtol=1e-3, atol=1e-3)
    for value, of_other in zip(found.gradients, other.gradients, strict=True):
        assert float((value.double() - of_other.double()).norm() / of_other.double().norm()) < 0.02
