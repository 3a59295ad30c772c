"""The Triton kernels of the margin losses in Triton's interpreter, against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.distributed import ProcessGroup

from kernels.implementation import ImplementationUnavailable
from kernels.margin import explicit_triton, in_batch_triton
from tests.kernels.margin_cases import (
    FORMS,
    Result,
    Rows,
    assert_no_worse_than_torch,
    make_rows,
    make_triplets,
    solve,
)
from tests.ranks import run_on_ranks

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
in_batch = partial(in_batch_triton.in_batch, blocks=in_batch_triton.Blocks(16, 16, 16, 16, 4))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two negatives at a time where a width of 21 is held as 32.
    monkeypatch.setattr(explicit_triton, "ELEMENTS", 64)


def assert_same_bits(one: Result, other: Result) -> None:
    for value, same in zip((*one[:4], *one.gradients), (*other[:4], *other.gradients), strict=True):
        assert torch.equal(value, same)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_dtype(form: str, dtype: torch.dtype) -> None:
    triplets = make_triplets(6, 5, width=21)
    assert_no_worse_than_torch(triplets, FORMS[form], explicit_triton.explicit, dtype)
    assert_no_worse_than_torch(make_rows(17, width=21), FORMS[form], in_batch, dtype)


@pytest.mark.parametrize(
    ("rows", "most", "width", "absent"),
    [(0, 3, 5, 0.0), (3, 0, 5, 0.0), (1, 1, 1, 0.0), (2, 3, 5, 1.0), (4, 7, 33, 0.4)],
)
def test_triplets_of_odd_shapes(rows: int, most: int, width: int, absent: float) -> None:
    data = make_triplets(rows, most, width=width, absent=absent)
    assert_no_worse_than_torch(data, FORMS["hinge, clipped"], explicit_triton.explicit, torch.float32)


@pytest.mark.parametrize(("rows", "width"), [(0, 5), (1, 1), (2, 5), (33, 16)])
@pytest.mark.parametrize("groups", ["none", "some", "all"])
def test_rows_of_odd_shapes(rows: int, width: int, groups: str) -> None:
    data = make_rows(rows, groups, width=width)
    assert_no_worse_than_torch(data, FORMS["hinge, clipped"], in_batch, torch.float32)


def test_a_vector_may_be_the_negative_of_many_or_of_none() -> None:
    data = make_triplets(9, 4, width=5)
    data.negatives[:] = 3
    result = assert_no_worse_than_torch(data, FORMS["softplus"], explicit_triton.explicit, torch.float32)
    assert result.gradients[2].any(1).tolist() == [vector == 3 for vector in range(9)]


def test_rows_may_lie_apart_in_memory() -> None:
    triplets, rows = make_triplets(4, 3, width=5), make_rows(9, width=5)
    for data, count, function in ((triplets, 3, explicit_triton.explicit), (rows, 4, in_batch)):
        data = type(data)(*(part.float() if part.is_floating_point() else part for part in data))
        expected = solve(data, FORMS["mse"], function, dtype=torch.float32)
        apart = [torch.zeros(len(p), 19)[:, 5 : 5 + p.shape[1]].copy_(p) for p in data[:count]]
        across = [part.T.contiguous().T for part in data[:count]]
        for sides in (apart, across):
            laid_out = type(data)(*sides, *data[count:])
            assert_same_bits(solve(laid_out, FORMS["mse"], function, dtype=torch.float32), expected)


def test_a_row_may_begin_beyond_two_billion_numbers() -> None:
    # Memory that is never touched costs nothing.
    far = torch.empty(70_000 * 32_768, dtype=torch.float16).as_strided((70_000, 8), (32_768, 1))
    data = make_triplets(2, 2, vectors=2, width=8, absent=0.0)
    anchors, positives = (side.half().requires_grad_() for side in data[:2])
    far[[0, -1]] = data.vectors.half()
    near = data.vectors.half()
    losses = [
        explicit_triton.explicit(
            anchors, positives, vectors, numbers, data.teacher_gaps, FORMS["softplus"], data.weights
        )
        for vectors, numbers in ((near, data.negatives), (far, data.negatives * 69_999))
    ]
    assert data.negatives.any() and torch.equal(losses[0].rows, losses[1].rows)
    one, other = (torch.autograd.grad(loss.total, (anchors, positives)) for loss in losses)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_each_time(dtype: torch.dtype) -> None:
    triplets, rows = make_triplets(5, 4, width=5), make_rows(18)
    for data, function in ((triplets, explicit_triton.explicit), (rows, in_batch)):
        assert_same_bits(*(solve(data, FORMS["softplus"], function, dtype=dtype) for _ in range(2)))


@pytest.mark.parametrize("form", ["hinge, clipped", "softplus"])
def test_what_is_not_a_number_reaches_the_loss(form: str) -> None:
    triplets, rows = make_triplets(3, 2, absent=0.0), make_rows(4, "none")
    for data, function in ((triplets, explicit_triton.explicit), (rows, in_batch)):
        data.positives[1, 2] = float("nan")
        result, truth = (
            solve(data, FORMS[form], how, dtype=torch.float32) for how in (function, "reference")
        )
        assert result.total.isnan() and torch.equal(result.rows.isnan(), truth.rows.isnan())


def test_large_factors_beside_small_ones_do_not_overflow_float16() -> None:
    data = make_rows(17, width=5)
    data.weights[:] = 1e-9  # a loss that is divided by the count of a large step
    data.weights[3] = 1e-6
    large = data._replace(weights=data.weights * 1e9)
    one, other = (solve(each, FORMS["softplus"], in_batch, dtype=torch.float32) for each in (data, large))
    for small, big in zip(one.gradients, other.gradients, strict=True):
        torch.testing.assert_close(small * 1e9, big, rtol=1e-4, atol=1e-6)
    assert_no_worse_than_torch(large, FORMS["softplus"], in_batch, torch.float16)


def test_it_is_chosen_by_name_and_refused_in_float64() -> None:
    for data in (make_triplets(2, 2), make_rows(3)):
        assert_no_worse_than_torch(data, FORMS["hinge"], "triton", torch.float32)
        with pytest.raises(ImplementationUnavailable, match="'triton'"):
            solve(data, FORMS["hinge"], "triton")


@pytest.mark.parametrize("split", [[5, 3], [0, 4, 2]], ids=str)
def test_ranks_equal_one_process(split: list[int]) -> None:
    parts = [make_rows(count, "some", seed=rank) for rank, count in enumerate(split)]
    whole = Rows(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    truth = solve(whole, FORMS["softplus"], "reference")

    def of_rank(group: ProcessGroup) -> Result:
        return solve(parts[group.rank()], FORMS["softplus"], in_batch, dtype=torch.float32, ranks=group)

    found = run_on_ranks(of_rank, len(split))
    pairs = [
        (torch.stack([result.total for result in found]).sum(), truth.total),
        (torch.cat([result.rows for result in found]), truth.rows),
        (torch.stack([result.gaps for result in found]).sum(0), truth.gaps),
        *(
            (torch.cat([result.gradients[side] for result in found]), truth.gradients[side])
            for side in (0, 1)
        ),
    ]
    for value, true in pairs:
        torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-6)
