"""The streaming margin losses against their definition, over a table of shapes, forms and dtypes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.margin import streaming
from tests.kernels.margin_cases import (
    FORMS,
    Rows,
    Triplets,
    assert_equal,
    assert_no_worse_than_torch,
    make_rows,
    make_triplets,
    solve,
)


@pytest.mark.parametrize(("rows", "most"), [(0, 0), (0, 3), (1, 1), (3, 0), (1, 7), (17, 5), (40, 1)])
@pytest.mark.parametrize("absent", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("size", [1, 60, 1 << 20])
@pytest.mark.parametrize("form", ["hinge, clipped", "softplus", "mse"])
def test_streaming_triplets_equal_the_reference(
    rows: int, most: int, absent: float, size: int, form: str
) -> None:
    data = make_triplets(rows, most, absent=absent)
    assert_equal(
        solve(data, FORMS[form], partial(streaming.explicit, elements=size)),
        solve(data, FORMS[form], "reference"),
    )


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("groups", ["none", "some", "all"])
@pytest.mark.parametrize("tile", [1, 5, 1024])
@pytest.mark.parametrize("form", FORMS)
def test_streaming_rows_equal_the_reference(rows: int, groups: str, tile: int, form: str) -> None:
    data = make_rows(rows, groups)
    assert_equal(
        solve(data, FORMS[form], partial(streaming.in_batch, tile=tile)),
        solve(data, FORMS[form], "reference"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("data", [make_triplets(40, 6, vectors=90), make_rows(40)], ids=["triplets", "rows"])
def test_low_precision_is_no_worse_than_dense_torch(
    data: Triplets | Rows, form: str, dtype: torch.dtype
) -> None:
    assert_no_worse_than_torch(data, FORMS[form], "streaming", dtype)


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
        solve(make_rows(200, width=4), FORMS["hinge"], partial(streaming.in_batch, tile=16))
    assert largest <= 200 * 5
