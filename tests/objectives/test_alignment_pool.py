"""The alignment pool: the gradient of a step is that of one process, however the step is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from data.batch import PackedBatch
from objectives.alignment import Comparison, sentence_alignment
from objectives.alignment_pool import AlignmentPool
from tests.objectives.microbatches import STREAMS, TinyEncoder, joined, step_of
from tests.ranks import run_on_ranks

WEIGHTS = torch.tensor([0.3, 1.0, 0.05, 2.0, 0.7], dtype=torch.float64)

# Pairs of every microbatch of every rank: even, uneven, ranks and microbatches without any pair.
STEPS = {
    "1 rank": [[9]],
    "1 rank, accumulation 4": [[3, 5, 0, 2]],
    "2 ranks": [[6], [3]],
    "2 ranks, one empty": [[6], [0]],
    "2 ranks, accumulation 4": [[2, 2, 2, 2], [4, 0, 1, 3]],
    "3 ranks, one empty": [[4], [0], [5]],
    "3 ranks, one empty, accumulation 4": [[1, 0, 3, 2], [0, 0, 0, 0], [2, 2, 0, 1]],
    "4 ranks": [[2], [5], [1], [3]],
    "4 ranks, accumulation 4": [[1, 2, 1, 0], [0, 0, 4, 0], [2, 1, 1, 2], [0, 0, 0, 1]],
    "2 ranks, no pair at all": [[0, 0], [0, 0]],
}

# Gradients of weight and temperature; total; sums, terms and correct of each stream.
Outcome = list[Tensor]


def whole_step(
    pairs: list[list[int]], implementation: str = "reference"
) -> tuple[list[list[PackedBatch]], Outcome]:
    """Return the microbatches of every rank, and the outcome of one process with one pool of all pairs."""
    ranks = [step_of(of_rank, seed=rank) for rank, of_rank in enumerate(pairs)]
    model = TinyEncoder()
    batch = joined([batch for rank in ranks for batch in rank])
    total, report = sentence_alignment(model(batch), batch, WEIGHTS, implementation=implementation)
    total.backward()
    return ranks, [*model.gradients(), total.detach(), *report]


def by_pool(
    microbatches: list[PackedBatch], group: ProcessGroup | None, implementation: str = "auto"
) -> Outcome:
    """One rank's share by way of the pool: a pass without gradient, the kernel, a pass of surrogates."""
    model = TinyEncoder()
    pool = AlignmentPool(WEIGHTS, ranks=group, alignment=implementation)
    with torch.no_grad():
        for batch in microbatches:
            pool.collect(model(batch), batch)
        total, report = pool.solve()
    for number, batch in enumerate(microbatches):
        pool.surrogate(number, model(batch)).backward()
    return [*model.gradients(), total, *report]


def directly(
    microbatches: list[PackedBatch], group: ProcessGroup | None, implementation: str = "auto"
) -> Outcome:
    """One rank's share without accumulation: the ordinary forward and backward."""
    (batch,) = microbatches
    model = TinyEncoder()
    total, report = sentence_alignment(
        model(batch), batch, WEIGHTS, ranks=group, implementation=implementation
    )
    total.backward()
    return [*model.gradients(), total.detach(), *report]


def over_ranks(outcomes: list[Outcome]) -> Outcome:
    return [torch.stack(parts).sum(0) for parts in zip(*outcomes, strict=True)]


def distance(outcome: Outcome, truth: Outcome) -> float:
    """Largest relative error of the gradients."""
    return max(
        float((value - true).norm() / true.norm().clamp_min(1e-30))
        for value, true in zip(outcome[:2], truth[:2], strict=True)
    )


@pytest.mark.ranks
@pytest.mark.parametrize("implementation", ["reference", "streaming"])
@pytest.mark.parametrize("name", STEPS)
def test_gradient_of_a_step_is_that_of_one_process(name: str, implementation: str) -> None:
    ranks, truth = whole_step(STEPS[name])

    def of_rank(group: ProcessGroup) -> list[Outcome]:
        microbatches = ranks[group.rank()]
        ways = [by_pool(microbatches, group, implementation)]
        if len(microbatches) == 1:
            ways.append(directly(microbatches, group, implementation))
        return ways

    for outcomes in zip(*run_on_ranks(of_rank, len(ranks)), strict=True):
        outcome = over_ranks(list(outcomes))
        assert distance(outcome, truth) <= 1e-12
        for value, true in zip(outcome, truth, strict=True):
            torch.testing.assert_close(value, true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["1 rank", "1 rank, accumulation 4"])
def test_without_a_process_group_the_pool_is_the_same(name: str) -> None:
    (microbatches,), truth = whole_step(STEPS[name])
    assert distance(by_pool(microbatches, None), truth) <= 1e-12


@pytest.mark.parametrize("name", ["2 ranks", "4 ranks", "3 ranks, one empty"])
def test_known_wrong_gradients_are_far_from_the_right_one(name: str) -> None:
    # Mean instead of sum over ranks, once too many ranks, and negatives of one's own rank only.
    ranks, truth = whole_step(STEPS[name])
    alone = over_ranks([directly(microbatches, None) for microbatches in ranks])
    for wrong in ([part / len(ranks) for part in truth], [part * len(ranks) for part in truth], alone):
        assert distance(wrong, truth) > 0.01


def test_every_microbatch_has_the_temperature_in_its_graph_and_only_the_first_its_gradient() -> None:
    model, microbatches = TinyEncoder(), step_of([3, 2, 0])
    pool = AlignmentPool(WEIGHTS)
    for batch in microbatches:
        pool.collect(model(batch), batch)
    pool.solve()
    of_temperature = [
        float(torch.autograd.grad(pool.surrogate(number, model(batch)), model.logarithm)[0])
        for number, batch in enumerate(microbatches)
    ]
    assert of_temperature[0] != 0 and of_temperature[1:] == [0, 0]


def test_the_report_counts_every_pair_once_by_its_stream() -> None:
    (microbatches,), (*_, sums, terms, correct) = whole_step([[9]])
    stream = microbatches[0].pair_stream
    assert terms.tolist() == torch.bincount(stream, minlength=STREAMS).tolist()
    assert (correct <= terms).all() and (sums[terms > 0] > 0).all() and not sums[terms == 0].any()


def test_the_total_is_the_weighted_sum_of_the_report() -> None:
    _, (_, _, total, sums, _, _) = whole_step([[9]])
    assert float(total) == pytest.approx(float(sums @ WEIGHTS), rel=1e-12)


def test_margin_and_prefixes_reach_the_pool_and_one_microbatch_alike() -> None:
    comparison = Comparison(additive_margin=0.2, widths=(2,))
    microbatches = step_of([3, 5, 0, 2])
    whole, cut = TinyEncoder(), TinyEncoder()
    batch = joined(microbatches)
    total = sentence_alignment(whole(batch), batch, WEIGHTS, comparison=comparison).total
    total.backward()
    pool = AlignmentPool(WEIGHTS, comparison=comparison)
    for part in microbatches:
        pool.collect(cut(part), part)
    assert float(pool.solve().total) == pytest.approx(float(total.detach()), rel=1e-12)
    for number, part in enumerate(microbatches):
        pool.surrogate(number, cut(part)).backward()
    for value, true in zip(cut.gradients(), whole.gradients(), strict=True):
        torch.testing.assert_close(value, true, rtol=1e-11, atol=1e-12)
    for other in (Comparison(), Comparison(additive_margin=0.2), Comparison(widths=(2,))):
        assert sentence_alignment(whole(batch), batch, WEIGHTS, comparison=other).total != total


def test_prefixes_are_weighted_alike_with_the_whole_vector_among_them() -> None:
    assert Comparison(widths=(2, 4)).prefixes(8) == [(2, 1 / 3), (4, 1 / 3), (8, 1 / 3)]
    assert Comparison().prefixes(8) is None
