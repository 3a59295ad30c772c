"""The margin losses: their definition against the formula, and what every implementation must hold to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels.margin import MarginForm, MarginLoss, adaptive_margin_loss, in_batch_margin_loss
from tests.kernels.margin_cases import (
    FORMS,
    Result,
    Rows,
    Triplets,
    assert_equal,
    entries,
    formula,
    make_rows,
    make_triplets,
    solve,
)
from tests.ranks import run_on_ranks

IMPLEMENTATIONS = ("reference", "streaming")


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
