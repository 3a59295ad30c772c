"""The norm is that of float64, in parts and of tables in which a float32 sum loses what it adds."""

import pytest
import torch

from training.gradient_norm import square_of


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (1 << 17,), (7, (1 << 17) + 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_the_sum_of_squares_in_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = gradient.double().square().sum()
    assert square_of(gradient).dtype == torch.float64
    assert torch.allclose(square_of(gradient), expected, rtol=1e-12, atol=0)


def test_rows_that_do_not_lie_end_to_end_count_as_they_are() -> None:
    gradient = torch.randn(6, 8)[:, ::2]
    assert torch.allclose(square_of(gradient), gradient.double().square().sum(), rtol=1e-12, atol=0)


def test_a_large_table_loses_nothing() -> None:
    gradient = torch.full((40_000_000,), 1e-3)
    exact = len(gradient) * float(gradient[0]) ** 2
    assert abs(float(square_of(gradient)) / exact - 1) < 1e-10
    in_float32 = float(torch.linalg.vector_norm(gradient)) ** 2
    assert abs(in_float32 / exact - 1) > 1e-4  # what it is for
