"""The vocabulary loss over a table cut over ranks equals that of one process with the whole table."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from kernels.vocabulary import tiles, vocabulary_loss
from kernels.vocabulary.shard import Shard, gather_parts, join_parts, shard_of
from tests.ranks import run_on_ranks

IMPLEMENTATIONS = ("reference", "streaming")


class Result(NamedTuple):
    losses: Tensor
    correct: Tensor
    of_hidden: Tensor
    of_table: Tensor
    of_bias: Tensor


class Whole(NamedTuple):
    hidden: Tensor
    table: Tensor
    bias: Tensor
    targets: Tensor
    weights: Tensor


def make_whole(positions: int, vocabulary: int, width: int = 4, dtype: torch.dtype = torch.float64) -> Whole:
    generator = torch.Generator().manual_seed(positions + 100 * vocabulary)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Whole(
        draw(positions, width).to(dtype),
        draw(vocabulary, width).to(dtype),
        draw(vocabulary).to(dtype),
        torch.randint(vocabulary, (positions,), generator=generator),
        draw(positions),
    )


def solve(whole: Whole, implementation: str, ranks: ProcessGroup | None = None) -> Result:
    """The result of one rank; its padding holds values that would be seen if they were ever counted."""
    hidden = whole.hidden.clone().requires_grad_()
    table, bias = whole.table, whole.bias
    if ranks is not None:
        rows = -(-len(table) // ranks.size())
        missing = rows * ranks.size() - len(table)
        own = slice(ranks.rank() * rows, (ranks.rank() + 1) * rows)
        table = torch.cat([table, table.new_full((missing, table.shape[1]), torch.nan)])[own]
        bias = torch.cat([bias, bias.new_full((missing,), torch.nan)])[own]
    table, bias = table.clone().requires_grad_(), bias.clone().requires_grad_()
    total, losses, correct = vocabulary_loss(
        hidden,
        table,
        bias,
        whole.targets,
        whole.weights,
        ranks=ranks,
        vocabulary=len(whole.table),
        implementation=implementation,
    )
    gradients = torch.autograd.grad(total, (hidden, table, bias))
    return Result(losses, correct, *gradients)


@pytest.mark.ranks
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("in_bands", [False, True])
def test_ranks_equal_one_process(
    size: int, in_bands: bool, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_bands:  # of one position each, where the table is not tiny
        if implementation == "reference":
            pytest.skip("has none")
        monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", 64)
        monkeypatch.setitem(tiles.LEAST_BAND, "cpu", 1)
    # Positions none, one and several; vocabularies that divide evenly and not, that leave a rank nothing but
    # padding (4 over 3), and that leave two of them nothing (1 over 3).
    wholes = [make_whole(m, v) for m in (0, 1, 13) for v in (1, 2, 4, 12, 37)]

    def of_rank(group: ProcessGroup) -> list[Result]:
        return [solve(whole, implementation, group) for whole in wholes]

    results = run_on_ranks(of_rank, size)
    for number, whole in enumerate(wholes):
        truth, vocabulary = solve(whole, "reference"), len(whole.table)
        of_ranks = [result[number] for result in results]
        for result in of_ranks:
            torch.testing.assert_close(result.losses, truth.losses, rtol=1e-12, atol=1e-12)
            assert torch.equal(result.losses, of_ranks[0].losses)  # bitwise: what follows must not diverge
            assert torch.equal(result.correct, truth.correct)
            torch.testing.assert_close(result.of_hidden, truth.of_hidden, rtol=1e-12, atol=1e-12)
            assert torch.equal(result.of_hidden, of_ranks[0].of_hidden)
        for name in ("of_table", "of_bias"):
            joined = torch.cat([getattr(result, name) for result in of_ranks])
            torch.testing.assert_close(joined[:vocabulary], getattr(truth, name), rtol=1e-12, atol=1e-12)
            assert not joined[vocabulary:].any()


@pytest.mark.ranks
def test_ranks_are_as_exact_as_one_process_in_bfloat16() -> None:
    whole = make_whole(20, 101, 16, torch.bfloat16)
    exact = Whole(*(part.double() if part.is_floating_point() else part for part in whole))
    truth, alone = solve(exact, "reference"), solve(whole, "streaming")

    def of_rank(group: ProcessGroup) -> Result:
        return solve(whole, "streaming", group)

    results = run_on_ranks(of_rank, 2)
    joined = results[0]._replace(
        of_table=torch.cat([result.of_table for result in results])[:101],
        of_bias=torch.cat([result.of_bias for result in results])[:101],
    )
    assert joined.losses.dtype == torch.float32 and joined.of_hidden.dtype == torch.bfloat16
    for name in ("losses", "of_hidden", "of_table", "of_bias"):
        true = getattr(truth, name)
        error, alone_error = (
            float((getattr(result, name).double() - true).norm() / true.norm()) for result in (joined, alone)
        )
        assert error <= 1.2 * alone_error + 1e-3, name


@pytest.mark.ranks
def test_all_collectives_run_in_the_forward() -> None:
    whole = make_whole(9, 40)

    def of_rank(group: ProcessGroup) -> list[list[str]]:
        hidden, table = whole.hidden.requires_grad_(), whole.table.chunk(2)[group.rank()].requires_grad_()
        bias = whole.bias.chunk(2)[group.rank()]
        with torch.profiler.profile() as forward:
            total = vocabulary_loss(hidden, table, bias, whole.targets, ranks=group).total
        with torch.profiler.profile() as backward:
            total.backward()
        return [
            [event.key for event in seen.key_averages() for _ in range(event.count) if "c10d::" in event.key]
            for seen in (forward, backward)
        ]

    for forward, backward in run_on_ranks(of_rank, 2):
        assert len(forward) == 2 and not backward, (
            forward,
            backward,
        )  # what is known of rows; gradient of hidden


def test_parts_of_a_row_make_the_whole_in_any_cut() -> None:
    logits = torch.tensor([[3.0, -200.0, 250.0, 0.5, 249.0], [-300.0, -301.0, -1e30, -300.5, -299.0]])
    logits = logits.double()
    target = torch.tensor([2, 3])

    def know(first: int, last: int) -> Tensor:
        part = logits[:, first:last]
        most = part.amax(1)
        inside = (target >= first) & (target < last)
        of_target = logits.gather(1, target[:, None])[:, 0].masked_fill(~inside, -torch.inf)
        return torch.stack([most, (part - most[:, None]).exp().sum(1), of_target])

    for cut in ([0, 5], [0, 1, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]):
        most, total, of_target = join_parts(
            torch.stack([know(*ends) for ends in zip(cut[:-1], cut[1:], strict=True)])
        )
        loss = (most - of_target) + total.log()
        truth = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        torch.testing.assert_close(loss, truth, rtol=1e-14, atol=1e-14)


def test_a_single_process_gathers_nothing() -> None:
    assert gather_parts(torch.zeros(3, 4), None).shape == (1, 3, 4)
    assert shard_of(5, None, None) == Shard(0, 5, None)


def test_a_table_that_does_not_hold_the_vocabulary_is_refused() -> None:
    for rows, vocabulary in ((5, 6), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="does not hold a vocabulary"):
            shard_of(rows, None, vocabulary)
