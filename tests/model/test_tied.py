"""A table with two uses has the gradient of both, wherever they are added up."""

import pytest
import torch

from model.parallel.embedding import VocabularyEmbedding
from model.parallel.topology import Axis
from model.tied import TokenTable

ROWS, WIDTH = 11, 4


def table_of(dtype: torch.dtype = torch.float64) -> TokenTable:
    torch.manual_seed(1)
    return TokenTable(ROWS, WIDTH, dtype=dtype)


def expected(table: torch.Tensor, losses: list) -> torch.Tensor:
    """The gradient of plain operations, over all losses of (ids, upstream, reading)."""
    plain = table.detach().clone().requires_grad_()
    for ids, upstream, reading in losses:
        loss = (plain[ids] * upstream).sum()
        loss = loss if reading is None else loss + ((plain[ids].sum(0) @ plain.T) * reading).sum()
        loss.backward()
    return plain.grad


def backward(table, ids, upstream, reading) -> None:
    found = table(ids)
    loss = (found * upstream).sum()
    if reading is not None:
        loss = loss + ((found.sum(0) @ table.read().T) * reading).sum()
    loss.backward()


def drawn(count: int, *, reads: bool) -> tuple:
    ids = torch.randint(0, ROWS, (count,))  # some of them twice
    return ids, torch.randn(count, WIDTH).double(), torch.randn(ROWS).double() if reads else None


@pytest.mark.parametrize("reads", [[True], [False], [True, True], [True, False], [False, True]])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_the_gradient_is_that_of_both_uses_over_all_microbatches(reads: list[bool], count: int) -> None:
    table = table_of()
    losses = [drawn(count, reads=each) for each in reads]
    for loss in losses:
        backward(table, *loss)
    assert torch.allclose(table.weight.grad, expected(table.weight, losses), rtol=1e-13, atol=1e-13)


def test_two_forwards_before_a_backward_do_not_meet() -> None:
    table = table_of()
    losses = [drawn(9, reads=True), drawn(5, reads=True)]
    total = torch.zeros(())
    for ids, upstream, reading in losses:
        found = table(ids)
        total = total + (found * upstream).sum() + ((found.sum(0) @ table.read().T) * reading).sum()
    total.backward()
    assert torch.allclose(table.weight.grad, expected(table.weight, losses), rtol=1e-13, atol=1e-13)


def test_the_gradient_of_the_reading_counts_where_nothing_else_of_the_forward_does() -> None:
    table = table_of()
    ids, upstream, reading = drawn(4, reads=True)
    table(ids).detach()
    (table.read() @ upstream[0] @ reading).backward()
    assert torch.allclose(table.weight.grad, reading[:, None] * upstream[0], rtol=1e-13, atol=1e-13)


def test_it_may_be_asked_for_alone() -> None:
    table = table_of()
    loss = drawn(7, reads=True)
    ids, upstream, reading = loss
    found = table(ids)
    total = (found * upstream).sum() + ((found.sum(0) @ table.read().T) * reading).sum()
    (gradient,) = torch.autograd.grad(total, [table.weight])
    assert torch.allclose(gradient, expected(table.weight, [loss]), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("dtype", "filled"), [(torch.float32, 0), (torch.float64, 0), (torch.bfloat16, 1)])
def test_no_second_table_is_filled_and_none_is_copied(dtype: torch.dtype, filled: int) -> None:
    table = table_of(dtype)
    ids, upstream, reading = drawn(30, reads=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        backward(table, ids, upstream.to(dtype), reading.to(dtype))
    calls = [event.name for event in seen.events()]
    assert calls.count("aten::embedding_dense_backward") == filled
    whole = [e for e in seen.events() if e.name == "aten::copy_" and e.input_shapes[0] == [ROWS, WIDTH]]
    assert not whole


def test_without_a_gradient_both_uses_are_plain() -> None:
    table = table_of()
    with torch.no_grad():
        assert torch.equal(table(torch.tensor([2])), table.weight[[2]]) and table.read() is table.weight


def test_the_table_of_a_tensor_rank_is_tied_too() -> None:
    torch.manual_seed(1)
    table = VocabularyEmbedding(ROWS, WIDTH, Axis(), rows=False).double()
    torch.nn.init.normal_(table.weight)
    loss = drawn(30, reads=True)
    backward(table, *loss)
    assert torch.allclose(table.weight.grad, expected(table.weight, [loss]), rtol=1e-13, atol=1e-13)
