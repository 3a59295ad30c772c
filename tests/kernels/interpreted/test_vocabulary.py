"""The vocabulary loss with Triton's kernels between the products, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels.vocabulary import VocabularyLoss, fused_triton, vocabulary_loss
from kernels.vocabulary.fused_triton import differentiate, know, vocabulary_loss_triton
from kernels.vocabulary.shard import Shard
from tests.ranks import run_on_ranks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_triton, "BLOCK", 32)


def draw(positions: int, vocabulary: int, width: int, dtype: torch.dtype, scale: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(positions * 1009 + vocabulary * 31 + width)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    parts = [
        scale * normal(positions, width) / width**0.5,
        normal(vocabulary, width),
        normal(vocabulary),
    ]
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    weights = torch.linspace(0.1, 1.0, positions, dtype=torch.float64)
    return [*(part.to(dtype).requires_grad_() for part in parts), targets, weights]


def gradients(loss: VocabularyLoss, given: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss.total, given[:3]))


def error(value: Tensor, truth: Tensor) -> float:
    return float(((value.double() - truth).norm() / truth.norm().clamp_min(1e-300)).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize(
    ("positions", "vocabulary", "width", "tile_bytes"),
    [(1, 1, 1, 2**20), (1, 33, 5, 2**20), (9, 32, 8, 2**20), (7, 101, 16, 7 * 4 * 64), (5, 70, 3, 5 * 4 * 7)],
)
def test_no_worse_than_dense_torch_in_its_dtype(
    positions: int, vocabulary: int, width: int, tile_bytes: int, scale: float, dtype: torch.dtype
) -> None:
    given = draw(positions, vocabulary, width, dtype, scale)
    exact = [part.detach().double().requires_grad_() for part in given[:3]] + given[3:]
    truth = vocabulary_loss(*exact, implementation="reference")
    dense = vocabulary_loss(*given, implementation="reference")
    ours = VocabularyLoss(
        *vocabulary_loss_triton(
            *given, Shard(0, vocabulary, None), tile_bytes=tile_bytes, kept_bytes=tile_bytes
        )
    )
    floor = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    assert ours.losses.dtype == torch.float32
    assert error(ours.losses, truth.losses) <= error(dense.losses, truth.losses) + floor / 2
    for value, of_dense, true in zip(
        gradients(ours, given),
        gradients(dense, given),
        gradients(truth, exact),
        strict=True,
    ):
        assert value.dtype == dtype
        assert error(value, true) <= 1.2 * error(of_dense, true) + floor


def test_it_equals_the_definition_in_float64_and_repeats_bit_by_bit() -> None:
    given = draw(6, 75, 5, torch.float64, 4.0)
    truth = vocabulary_loss(*given, implementation="reference")
    ours, again = (vocabulary_loss(*given, implementation="triton") for _ in range(2))
    torch.testing.assert_close(ours.losses, truth.losses, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.correct, truth.correct) and torch.equal(ours.losses, again.losses)
    found, repeated = gradients(ours, given), gradients(again, given)
    assert all(map(torch.equal, found, repeated))
    for value, true in zip(found, gradients(truth, given), strict=True):
        torch.testing.assert_close(value, true, rtol=1e-12, atol=1e-12)


def test_without_positions_nothing_is_launched_and_the_graph_holds() -> None:
    given = draw(0, 11, 3, torch.float32, 1.0)
    vocabulary_loss(*given, implementation="triton").total.backward()
    assert all(part.grad is not None and not part.grad.any() for part in given[:3])


@pytest.mark.ranks
def test_ranks_equal_one_process() -> None:
    given = draw(5, 41, 4, torch.float64, 2.0)
    truth = vocabulary_loss(*given, implementation="reference")
    true = gradients(truth, given)

    def of_rank(group: ProcessGroup) -> list[Tensor]:
        rows = -(-41 // group.size())
        own = slice(group.rank() * rows, (group.rank() + 1) * rows)
        missing = rows * group.size() - 41
        table = torch.cat([given[1], torch.full((missing, 4), torch.nan).double()])[own]
        bias = torch.cat([given[2], torch.full((missing,), torch.nan).double()])[own]
        here = [part.detach().clone().requires_grad_() for part in (given[0], table, bias)] + given[3:]
        loss = vocabulary_loss(*here, ranks=group, vocabulary=41, implementation="triton")
        assert torch.equal(loss.correct, truth.correct)
        return [loss.losses, *gradients(loss, here)]

    results = run_on_ranks(of_rank, 2)
    for losses, of_hidden, _, _ in results:
        torch.testing.assert_close(losses, truth.losses, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(of_hidden, true[0], rtol=1e-12, atol=1e-12)
    for number in (2, 3):
        joined = torch.cat([result[number] for result in results])
        torch.testing.assert_close(joined[:41], true[number - 1], rtol=1e-12, atol=1e-12)
        assert not joined[41:].any()


def test_rows_that_begin_past_the_31st_bit_are_read_and_written() -> None:
    # Only the pages of three short rows are ever touched.
    stride, columns = 2**30, 40
    far = torch.empty(2 * stride + columns, dtype=torch.float16).as_strided((3, columns), (stride, 1))
    far.copy_(torch.randn(3, columns, generator=torch.Generator().manual_seed(1)))
    near, bias, targets = far.clone(), torch.zeros(columns, dtype=torch.float16), torch.tensor([0, 39, 7])
    found, expected = torch.empty(3, 3), torch.empty(3, 3)
    know(far, bias, targets, found)
    know(near, bias, targets, expected)
    assert torch.equal(found, expected)
    whole = torch.stack([expected[0], expected[1].log(), expected[0] - expected[2] + expected[1].log()])
    differentiate(far, bias, targets, whole, far)
    differentiate(near, bias, targets, whole, near)
    assert torch.equal(far, near)
    torch.testing.assert_close(far.float().sum(1), torch.zeros(3), rtol=0, atol=2e-3)
