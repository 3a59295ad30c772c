"""The vocabulary loss: its definition against a naive formula, the streaming one against its definition."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kernels.implementation import ImplementationUnavailable
from kernels.vocabulary import VocabularyLoss, vocabulary_loss
from kernels.vocabulary.shard import Shard
from kernels.vocabulary.streaming import vocabulary_loss_streaming
from kernels.vocabulary.tiles import cut_of
from kernels.vocabulary.torch_chunks import vocabulary_loss_torch

IMPLEMENTATIONS = ("reference", "streaming", "torch")


class Case(NamedTuple):
    hidden: Tensor
    table: Tensor
    bias: Tensor
    targets: Tensor
    weights: Tensor


def case(positions: int, vocabulary: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> Case:
    generator = torch.Generator().manual_seed(positions * 1009 + vocabulary * 31 + width)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Case(
        (scale * draw(positions, width)).to(dtype).requires_grad_(),
        draw(vocabulary, width).to(dtype).requires_grad_(),
        draw(vocabulary).to(dtype).requires_grad_(),
        torch.randint(vocabulary, (positions,), generator=generator),
        draw(positions).abs() / max(1, positions),
    )


def reference(given: Case) -> VocabularyLoss:
    return vocabulary_loss(*given, implementation="reference")


def streaming(given: Case, tile: tuple[int, int], kept: int = 0, least_band: int = 10_000) -> VocabularyLoss:
    """In tiles of at most ``tile`` = (rows, columns), ``kept`` of which are not made twice.

    In bands where these have ``least_band`` positions.
    """
    rows, columns = tile
    tile_bytes = min(rows, max(1, len(given.hidden))) * columns * given.table.element_size()
    return VocabularyLoss(
        *vocabulary_loss_streaming(
            *given,
            Shard(0, len(given.table), None),
            tile_rows=rows,
            tile_bytes=tile_bytes,
            kept_bytes=kept * tile_bytes,
            least_band=least_band,
        )
    )


def gradients(loss: VocabularyLoss, given: Case) -> list[Tensor]:
    return list(torch.autograd.grad(loss.total, (given.hidden, given.table, given.bias)))


def relative_error(value: Tensor, truth: Tensor) -> float:
    return float(((value.double() - truth).norm() / truth.norm().clamp_min(1e-300)).detach())


def test_reference_is_minus_the_log_of_the_targets_share() -> None:
    given = case(3, 5, 4, torch.float64)
    total, losses, correct = reference(given)
    assert float(total.detach()) == pytest.approx(float(given.weights @ losses), rel=1e-15)
    for row in range(3):
        scores = [
            float(given.hidden[row].detach() @ given.table[word].detach() + given.bias[word].detach())
            for word in range(5)
        ]
        target = int(given.targets[row])
        share = math.exp(scores[target]) / sum(map(math.exp, scores))
        assert float(losses[row]) == pytest.approx(-math.log(share), rel=1e-12)
        assert bool(correct[row]) == (max(range(5), key=scores.__getitem__) == target)


TILES = [((4, 2), 0), ((1, 1000), 2), ((5, 3), 4), ((10_000, 3), 1), ((16, 10_000), 1), ((10_000, 10_000), 0)]


@pytest.mark.parametrize("least_band", [1, 10_000])
@pytest.mark.parametrize(("tile", "kept"), TILES, ids=str)
def test_streaming_passes_gradcheck(tile: tuple[int, int], kept: int, least_band: int) -> None:
    given = case(6, 7, 2, torch.float64)

    def total(hidden: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        return streaming(given._replace(hidden=hidden, table=table, bias=bias), tile, kept, least_band).total

    assert torch.autograd.gradcheck(total, (given.hidden, given.table, given.bias))


@pytest.mark.parametrize(
    ("positions", "ids", "kept_bytes", "least_band", "dtype", "cut"),
    [
        (
            100,
            1000,
            10_000 * 4,
            8,
            torch.float32,
            (10, 10, 384, 3),
        ),  # ten bands, all of whose logits are kept
        (105, 1000, 10_000 * 4, 8, torch.float32, (10, 10, 384, 3)),  # of equal size
        (100, 1000, 10_000 * 4, 11, torch.float32, (100, 64, 64, 2)),  # too few positions in each
        (100, 1000, 10_000 * 2, 8, torch.bfloat16, (100, 64, 128, 1)),  # no second table in float32
        (100, 1000, 400_000, 8, torch.float32, (100, 64, 64, 24)),  # all of them are kept, but for ...
        (0, 1000, 10_000, 8, torch.float32, (1, 1, 960, 2)),
    ],
)
def test_bands_are_cut_where_their_logits_fit_and_are_worth_it(
    positions: int, ids: int, kept_bytes: int, least_band: int, dtype: torch.dtype, cut: tuple[int, ...]
) -> None:
    hidden, table = torch.empty(positions, 4, dtype=dtype), torch.empty(ids, 4, dtype=dtype)
    limits = {"tile_rows": 64, "tile_bytes": 16 * 1024, "kept_bytes": kept_bytes, "least_band": least_band}
    assert cut_of(hidden, table, wanted=True, **limits) == cut
    assert cut_of(hidden, table, wanted=False, **limits).kept == 0


@pytest.mark.parametrize("positions", [0, 1, 2, 17, 64])
@pytest.mark.parametrize(("vocabulary", "width"), [(1, 1), (2, 3), (37, 8), (1031, 5)])
@pytest.mark.parametrize(
    ("tile", "kept"),
    [((1, 500), 3), ((7, 10), 2), ((16, 10_000), 0), ((10_000, 37), 9), ((10_000, 10_000), 1)],
    ids=str,
)
@pytest.mark.parametrize("least_band", [1, 10_000])
def test_streaming_equals_reference_in_float64_for_every_tile(
    positions: int, vocabulary: int, width: int, tile: tuple[int, int], kept: int, least_band: int
) -> None:
    given = case(positions, vocabulary, width, torch.float64)
    found, truth = streaming(given, tile, kept, least_band), reference(given)
    torch.testing.assert_close(found.total, truth.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.losses, truth.losses, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.correct, truth.correct)
    for value, true in zip(gradients(found, given), gradients(truth, given), strict=True):
        torch.testing.assert_close(value, true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tile", "kept"), [((5, 10_000), 1), ((10_000, 50), 2), ((10_000, 10_000), 1)])
@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("least_band", [1, 10_000])
def test_streaming_is_as_exact_as_dense_torch_in_low_precision(
    dtype: torch.dtype, tile: tuple[int, int], kept: int, scale: float, least_band: int
) -> None:
    given = case(33, 515, 24, dtype, scale)
    hidden, table, bias = (part.detach().double().requires_grad_() for part in given[:3])
    truth_case = Case(hidden, table, bias, given.targets, given.weights)
    truth, dense = reference(truth_case), reference(given)
    found = streaming(given, tile, kept, least_band)
    assert found.total.dtype == found.losses.dtype == torch.float32
    floor = {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    assert relative_error(found.losses, truth.losses) <= (
        1.2 * relative_error(dense.losses, truth.losses) + floor / 10
    )
    for value, of_dense, true in zip(
        gradients(found, given), gradients(dense, given), gradients(truth, truth_case), strict=True
    ):
        assert value.dtype == dtype
        assert relative_error(value, true) <= 1.5 * relative_error(of_dense, true) + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("positions", "vocabulary", "width"), [(1, 2, 1), (13, 37, 8), (64, 515, 24)])
def test_torchs_own_function_is_exact_with_a_weight_for_each_position(
    positions: int, vocabulary: int, width: int, dtype: torch.dtype
) -> None:
    given = case(positions, vocabulary, width, dtype)
    hidden, table, bias = (part.detach().double().requires_grad_() for part in given[:3])
    exact = Case(hidden, table, bias, given.targets, given.weights)
    truth, dense = reference(exact), reference(given)
    shard = Shard(0, vocabulary, None)
    found = VocabularyLoss(*vocabulary_loss_torch(*given, shard, chunk_bytes=5 * vocabulary * dtype.itemsize))
    assert torch.equal(found.correct, truth.correct) and found.losses.dtype == dtype
    floor = 1e-6 if dtype == torch.float32 else 1e-12
    assert relative_error(found.losses, truth.losses) <= floor
    assert relative_error(found.total, truth.total) <= floor
    for value, of_dense, true in zip(
        gradients(found, given), gradients(dense, given), gradients(truth, exact), strict=True
    ):
        assert relative_error(value, true) <= 1.5 * relative_error(of_dense, true) + floor


def test_torchs_own_function_is_refused_where_it_is_not_exact() -> None:
    given = case(4, 6, 3, torch.bfloat16)
    with pytest.raises(ImplementationUnavailable, match="rounds the losses of torch.bfloat16.*'streaming'"):
        vocabulary_loss(*given[:4], implementation="torch")
    given = case(4, 6, 3, torch.float32)
    with pytest.raises(ImplementationUnavailable, match="the whole table on each rank"):
        vocabulary_loss_torch(*given, Shard(0, 3, None))


def test_losses_are_not_rounded_to_bfloat16() -> None:
    given = case(50, 400, 8, torch.bfloat16)
    losses = vocabulary_loss(*given[:4]).losses
    assert not torch.equal(losses, losses.bfloat16().float())


def test_the_tables_gradient_is_added_up_in_float32() -> None:
    # 512 equal rows, one a tile: in bfloat16 the sum would stop growing long before its end.
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    table = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    given = Case(hidden, table, bias, torch.zeros(512, dtype=torch.long), torch.ones(512))
    streaming(given, (1, 2), 0, least_band=1).total.backward()
    assert table.grad is not None and bias.grad is not None
    assert table.grad.flatten().tolist() == bias.grad.tolist() == [-256.0, 256.0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_predictions_hidden_table_and_bias_stay_in_the_graph(implementation: str) -> None:
    given = case(0, 11, 3, torch.float32)
    loss = vocabulary_loss(*given[:4], implementation=implementation)
    assert loss.losses.shape == loss.correct.shape == (0,) and float(loss.total.detach()) == 0
    loss.total.backward()
    for tensor in given[:3]:
        assert tensor.grad is not None and not tensor.grad.any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_huge_logits_give_finite_losses(implementation: str) -> None:
    hidden = torch.full((1, 1), 3e4, requires_grad=True)
    table = torch.tensor([[1.0], [-1.0]])
    loss = vocabulary_loss(hidden, table, torch.zeros(2), torch.tensor([1]), implementation=implementation)
    loss.total.backward()
    assert loss.losses.tolist() == [6e4]
    assert hidden.grad is not None and hidden.grad.tolist() == [[2.0]]


def test_any_stride_is_accepted() -> None:
    given = case(9, 21, 4, torch.float64)
    wide = torch.randn(9, 8, dtype=torch.float64)
    strided = wide[:, ::2].detach().requires_grad_()
    columns = given.table.detach().T.contiguous().T.requires_grad_()
    given = given._replace(hidden=strided, table=columns)
    found, truth = streaming(given, (4, 5)), reference(given)
    torch.testing.assert_close(found.losses, truth.losses, rtol=1e-12, atol=1e-12)
    for value, true in zip(gradients(found, given), gradients(truth, given), strict=True):
        torch.testing.assert_close(value, true, rtol=1e-12, atol=1e-12)


def test_only_what_needs_a_gradient_gets_one() -> None:
    given = case(6, 9, 3, torch.float64)
    loss = vocabulary_loss(
        given.hidden, given.table.detach(), given.bias.detach(), given.targets, given.weights
    )
    (value,) = torch.autograd.grad(loss.total, (given.hidden,))
    truth = gradients(reference(given), given)[0]
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_follow_the_totals_own_and_no_weights_are_weights_of_one(implementation: str) -> None:
    given = case(6, 9, 3, torch.float64)
    inputs = (given.hidden, given.table, given.bias)
    loss = vocabulary_loss(*given[:4], implementation=implementation)
    found = torch.autograd.grad(-3 * loss.total, inputs)
    truth = torch.autograd.grad(reference(given._replace(weights=torch.ones(6).double())).total, inputs)
    for value, true in zip(found, truth, strict=True):
        torch.testing.assert_close(value, -3 * true, rtol=1e-12, atol=1e-12)


def test_gradients_that_were_scaled_are_not_given_out_again() -> None:
    given = case(6, 9, 3, torch.float64)
    total = streaming(given, (4, 5)).total
    torch.autograd.grad(2 * total, given.hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(2 * total, given.hidden)


def test_without_gradients_nothing_is_differentiated() -> None:
    given = case(6, 9, 3, torch.float64)
    with torch.no_grad():
        loss = streaming(given, (4, 5), 3, least_band=1)
    truth = reference(given)
    assert not loss.total.requires_grad
    torch.testing.assert_close(loss.losses, truth.losses, rtol=1e-12, atol=1e-12)


def test_the_logits_of_a_large_batch_are_never_whole() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    given = case(256, 1024, 4, torch.float32)
    with Watch():
        streaming(given, (256, 64)).total.backward()
    assert largest <= 2**16 < 256 * 1024 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", [0, 1, 100])
def test_the_same_bits_come_out_again(dtype: torch.dtype, kept: int) -> None:
    given = case(19, 203, 16, dtype)
    first = gradients(streaming(given, (8, 50), kept), given)
    for again in (kept, 3):  # kept or made again
        assert all(map(torch.equal, first, gradients(streaming(given, (8, 50), again), given)))


def test_mistaken_arguments_are_refused() -> None:
    given = case(4, 6, 3, torch.float32)
    with pytest.raises(ValueError, match=r"are not \(M, D\) and \(V, D\)"):
        vocabulary_loss(given.hidden[:, :2], given.table, given.bias, given.targets)
    with pytest.raises(ValueError, match="do not fit"):
        vocabulary_loss(given.hidden, given.table, given.bias[:5], given.targets)
    with pytest.raises(ValueError, match="differ in dtype"):
        vocabulary_loss(given.hidden, given.table.bfloat16(), given.bias, given.targets)
    with pytest.raises(ValueError, match=r"weights \(3,\) are not one for each of 4 targets"):
        vocabulary_loss(*given[:4], given.weights[:3])
    with pytest.raises(ImplementationUnavailable):
        vocabulary_loss(*given[:4], implementation="triton")
