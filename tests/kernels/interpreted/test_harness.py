"""The interpreter interprets, and what it says of an example is true in the dtypes that matter."""

from __future__ import annotations

import pytest
import torch
import triton

from kernels.implementation import triton_runs_on
from tests.kernels import example_triton


def test_kernels_are_interpreted_here() -> None:
    assert not isinstance(example_triton.product_kernel, triton.runtime.jit.JITFunction)
    assert triton_runs_on(torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (16, 16, 16), (33, 17, 50)])
def test_an_example_equals_torch(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    a, b = torch.randn(m, k).to(dtype), torch.randn(n, k + 3).to(dtype)[:, 1 : k + 1]
    truth = a.double() @ b.double().T
    assert float((example_triton.product(a, b).double() - truth).norm() / truth.norm()) <= 1e-6
