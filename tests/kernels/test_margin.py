"""The margin losses: their definition against the formula, the streaming ones against their definition."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from kernels.margin import MarginForm, MarginLoss, adaptive_margin_loss, in_batch_margin_loss, streaming
from tests.ranks import run_on_ranks

IMPLEMENTATIONS = ("reference", "streaming")
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
    implementation: str,
    *,
    dtype: torch.dtype = torch.float64,
    ranks: ProcessGroup | None = None,
    size: int | None = None,
) -> Result:
    """The loss of ``data``; ``size`` is the streaming implementations' own."""
    count = 3 if isinstance(data, Triplets) else 2
    inputs = tuple(part.to(dtype, copy=True).requires_grad_() for part in data[:count])
    if isinstance(data, Triplets):
        if size is not None:
            loss = streaming.explicit(*inputs, *data[3:5], form, data.weights, elements=size)
        else:
            loss = adaptive_margin_loss(
                *inputs, *data[3:5], form=form, weights=data.weights, implementation=implementation
            )
    elif size is not None:
        loss = streaming.in_batch(*inputs, *data[2:5], form, data.weights, ranks, tile=size)
    else:
        loss = in_batch_margin_loss(
            *inputs,
            *data[2:4],
            groups=data.groups,
            form=form,
            weights=data.weights,
            ranks=ranks,
            implementation=implementation,
        )
    return result_of(loss, inputs)


def assert_equal(result: Result, truth: Result, tolerance: float = 1e-12) -> None:
    pairs = [*zip(result[:4], truth[:4], strict=True), *zip(result[4], truth[4], strict=True)]
    for value, true in pairs:
        assert value.shape == true.shape
        torch.testing.assert_close(value.double(), true.double(), rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("data", [make_triplets(5, 4), make_rows(7)], ids=["triplets", "rows"])
def test_losses_are_those_of_the_formula(data: Triplets | Rows, form: str, implementation: str) -> None:
    found = entries(data)
    result = solve(data, FORMS[form], implementation)
    losses = [[formula(FORMS[form], *entry) for entry in row] for row in found]
    rows = [math.fsum(row) / max(1, len(row)) for row in losses]
    assert result.rows.tolist() == pytest.approx(rows, rel=1e-12, abs=1e-13)
    assert float(result.total) == pytest.approx(float(torch.tensor(rows).double() @ data.weights), rel=1e-7)
    assert result.correct.tolist() == [all(student >= 0 for student, _ in row) for row in found]
    flat = torch.tensor([entry for row in found for entry in row], dtype=torch.float64)
    target = FORMS[form].target(flat[:, 1])
    expected = [len(flat), int((flat[:, 0] < target).sum())]
    expected += [float(x) for gaps in flat.T for x in (gaps.sum(), gaps.square().sum())]
    assert result.gaps.tolist() == pytest.approx(expected, rel=1e-10)
    assert 0 < expected[1] < expected[0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences(form: str, implementation: str) -> None:
    triplets, rows = make_triplets(4, 3), make_rows(5)

    def of_triplets(*vectors: Tensor) -> Tensor:
        return adaptive_margin_loss(
            *vectors,
            *triplets[3:5],
            form=FORMS[form],
            weights=triplets.weights,
            implementation=implementation,
        ).total

    def of_rows(*vectors: Tensor) -> Tensor:
        return in_batch_margin_loss(
            *vectors,
            *rows[2:4],
            groups=rows.groups,
            form=FORMS[form],
            weights=rows.weights,
            implementation=implementation,
        ).total

    assert torch.autograd.gradcheck(
        of_triplets, tuple(part.clone().requires_grad_() for part in triplets[:3])
    )
    assert torch.autograd.gradcheck(of_rows, tuple(part.clone().requires_grad_() for part in rows[:2]))


@pytest.mark.parametrize(("rows", "most"), [(0, 0), (0, 3), (1, 1), (3, 0), (1, 7), (17, 5), (40, 1)])
@pytest.mark.parametrize("absent", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("size", [1, 60, 1 << 20])
@pytest.mark.parametrize("form", ["hinge, clipped", "softplus", "mse"])
def test_streaming_triplets_equal_the_reference(
    rows: int, most: int, absent: float, size: int, form: str
) -> None:
    data = make_triplets(rows, most, absent=absent)
    assert_equal(solve(data, FORMS[form], "", size=size), solve(data, FORMS[form], "reference"))


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("groups", ["none", "some", "all"])
@pytest.mark.parametrize("tile", [1, 5, 1024])
@pytest.mark.parametrize("form", FORMS)
def test_streaming_rows_equal_the_reference(rows: int, groups: str, tile: int, form: str) -> None:
    data = make_rows(rows, groups)
    assert_equal(solve(data, FORMS[form], "", size=tile), solve(data, FORMS[form], "reference"))


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", ["softplus", "mse"])  # a hinge may fall on the other side of its corner
@pytest.mark.parametrize("data", [make_triplets(40, 6, vectors=90), make_rows(40)], ids=["triplets", "rows"])
def test_low_precision_loses_only_the_rounding_of_the_gradients(
    data: Triplets | Rows, form: str, implementation: str, dtype: torch.dtype, floor: float
) -> None:
    count = 3 if isinstance(data, Triplets) else 2
    rounded = type(data)(*(part.to(dtype).double() for part in data[:count]), *data[count:])
    result, truth = (
        solve(rounded, FORMS[form], implementation, dtype=dtype),
        solve(rounded, FORMS[form], "reference"),
    )
    assert result.total.dtype == torch.float32 and result.gradients[0].dtype == dtype
    torch.testing.assert_close(result.rows.double(), truth.rows, rtol=1e-5, atol=1e-6)
    for value, true in zip(result.gradients, truth.gradients, strict=True):
        assert float((value.double() - true).norm() / true.norm()) <= floor


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("data", [make_triplets(6, 4), make_rows(8)], ids=["triplets", "rows"])
def test_it_is_never_below_zero_and_zero_only_where_the_student_separates_as_far_as_the_teacher(
    data: Triplets | Rows, implementation: str
) -> None:
    satisfied = MarginForm("hinge", 0.0, min(s for row in entries(data) for s, _ in row) - 1e-9)
    assert not solve(data, satisfied, implementation).rows.any()
    assert not any(g.any() for g in solve(data, satisfied, implementation).gradients)
    almost = satisfied._replace(offset=satisfied.offset + 2e-9)
    assert (solve(data, almost, implementation).rows > 0).sum() == 1
    for form in FORMS.values():
        assert (solve(data, form, implementation).rows >= 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_teacher_gets_no_gradient(implementation: str) -> None:
    triplets, rows = make_triplets(4, 3), make_rows(5)
    gaps = triplets.teacher_gaps.clone().requires_grad_()
    of_teacher = [part.clone().requires_grad_() for part in rows[2:4]]
    anchors = triplets.anchors.clone().requires_grad_()
    loss = adaptive_margin_loss(
        anchors,
        *triplets[1:4],
        gaps,
        form=FORMS["mse"],
        weights=triplets.weights,
        implementation=implementation,
    )
    other = rows.anchors.clone().requires_grad_()
    in_batch = in_batch_margin_loss(
        other,
        rows.positives,
        *of_teacher,
        groups=rows.groups,
        form=FORMS["mse"],
        weights=rows.weights,
        implementation=implementation,
    )
    (loss.total + in_batch.total).backward()
    assert anchors.grad is not None and other.grad is not None
    assert gaps.grad is None and all(part.grad is None for part in of_teacher)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_order_of_the_negatives_does_not_matter(implementation: str) -> None:
    data = make_triplets(6, 5)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))
    shuffled = data._replace(negatives=data.negatives[:, order], teacher_gaps=data.teacher_gaps[:, order])
    form = FORMS["hinge"]
    assert_equal(solve(shuffled, form, implementation), solve(data, form, implementation))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_in_the_batch_is_the_same_as_every_other_groups_positive_by_number(implementation: str) -> None:
    rows = make_rows(9)
    numbers = torch.arange(9).expand(9, 9)
    negatives = numbers.masked_fill(rows.groups[:, None] == rows.groups, -1)
    of_teacher = rows.teacher_anchors @ rows.teacher_positives.T
    triplets = Triplets(
        rows.anchors, rows.positives, rows.positives, negatives, of_teacher.diagonal()[:, None] - of_teacher,
        rows.weights,
    )  # fmt: skip
    one, other = (solve(data, FORMS["softplus"], implementation) for data in (rows, triplets))
    merged = (other.gradients[0], other.gradients[1] + other.gradients[2])
    assert_equal(one, other._replace(gradients=merged))


def test_similarities_are_never_whole() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        solve(make_rows(200, width=4), FORMS["hinge"], "", size=16)
    assert largest <= 200 * 5


def test_without_a_wanted_gradient_there_is_none() -> None:
    rows = make_rows(4)
    loss = in_batch_margin_loss(*rows[:4], groups=rows.groups, form=FORMS["hinge"], weights=rows.weights)
    assert isinstance(loss, MarginLoss) and not loss.total.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": torch.tensor([[9], [0]])}, "from -1 .absent. to 8"),
        ({"negatives": torch.tensor([[-2], [0]])}, "from -1 .absent. to 8"),
        ({"negatives": torch.zeros(3, 1, dtype=torch.long)}, r"are not \(2, K\)"),
        ({"teacher_gaps": torch.zeros(2, 2)}, r"teacher_gaps \(2, 2\) are not \(2, 1\)"),
        ({"weights": torch.ones(3)}, r"weights \(3,\) is not \(2,\)"),
        ({"vectors": torch.zeros(9, 4, dtype=torch.float64)}, r"are not \(N, 5\)"),
        ({"positives": torch.zeros(2, 4, dtype=torch.float64)}, r"are not \(Q, E\)"),
    ],
)
def test_mistaken_triplets_are_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(make_triplets(2, 1)._replace(**change), FORMS["hinge"], "reference")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": torch.zeros(4)}, r"groups \(4,\) is not \(3,\)"),
        ({"teacher_positives": torch.zeros(3, 2)}, r"are not \(3, Et\)"),
    ],
)
def test_mistaken_rows_are_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(make_rows(3)._replace(**change), FORMS["hinge"], "streaming")


@pytest.mark.ranks
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("split", [[7], [5, 3], [6, 0], [0, 4, 2], [1, 4, 0, 2], [0, 0]], ids=str)
def test_ranks_equal_one_process(split: list[int], implementation: str) -> None:
    parts = [make_rows(count, "some", seed=rank) for rank, count in enumerate(split)]
    whole = Rows(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    truth = solve(whole, FORMS["softplus"], "reference")

    def of_rank(group: ProcessGroup) -> Result:
        return solve(parts[group.rank()], FORMS["softplus"], implementation, ranks=group)

    found = run_on_ranks(of_rank, len(split))
    joined = Result(
        torch.stack([r.total for r in found]).sum(),
        torch.cat([r.rows for r in found]),
        torch.cat([r.correct for r in found]),
        torch.stack([r.gaps for r in found]).sum(0),
        tuple(torch.cat(sides) for sides in zip(*(r.gradients for r in found), strict=True)),
    )
    assert_equal(joined, truth)
