"""Margins of a step: the gradient is that of one process, however the step is cut; pairs not taught have no part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from data.batch import PackedBatch
from kernels.margin import GapSums, MarginForm
from kernels.margin.cuda.build import cpu_compiler
from objectives.adaptive_margin import InBatch, Margin, pair_margin, triplet_margin
from objectives.alignment import pairs_of
from objectives.alignment_pool import AlignmentPool
from tests.objectives.microbatches import STREAMS, TinyEncoder, joined, step_of
from tests.ranks import run_on_ranks

WEIGHTS = torch.tensor([0.3, 1.0, 0.05, 2.0, 0.7], dtype=torch.float64)
NO_ALIGNMENT = torch.zeros(STREAMS, dtype=torch.float64)
IN_BATCH = InBatch(MarginForm("softplus", 0.4, 0.1, tau=0.3), WEIGHTS)
STEPS = {
    "1 rank, accumulation 4": [[3, 5, 0, 2]],
    "2 ranks, one empty": [[6], [0]],
    "2 ranks, accumulation 3": [[2, 0, 2], [4, 1, 3]],
    "3 ranks, nothing at all": [[0], [0], [0]],
}


def taught(batch: PackedBatch, seed: int) -> PackedBatch:
    """The batch with a teacher's vectors, but for every fifth document."""
    generator = torch.Generator().manual_seed(seed)
    vectors = normalize(
        torch.randn(batch.sentence_documents, 3, generator=generator, dtype=torch.float64), dim=1
    )
    vectors[::5] = 0
    return replace(batch, teacher_vectors=vectors)


def step_taught(pairs: list[int], seed: int) -> list[PackedBatch]:
    return [taught(batch, 10 * seed + number) for number, batch in enumerate(step_of(pairs, seed))]


def outcome(model: TinyEncoder, margin: Margin) -> list[Tensor]:
    gradient = model.weight.grad if model.weight.grad is not None else torch.zeros_like(model.weight)
    return [gradient, margin.total.detach(), *margin.report, margin.gaps]


def alone(batch: PackedBatch) -> list[Tensor]:
    """One process, one pool."""
    model = TinyEncoder()
    margin = pair_margin(
        model(batch).sentence_vectors, batch.teacher_vectors, pairs_of(batch), IN_BATCH, ranks=None,
        implementation="reference",
    )  # fmt: skip
    margin.total.backward()
    return outcome(model, margin)


@pytest.mark.ranks
@pytest.mark.parametrize("name", STEPS)
def test_the_margin_of_a_pool_is_that_of_one_process(name: str) -> None:
    ranks = [step_taught(pairs, seed) for seed, pairs in enumerate(STEPS[name])]
    every = [batch for rank in ranks for batch in rank]
    whole = replace(joined(every), teacher_vectors=torch.cat([batch.teacher_vectors for batch in every]))
    truth = alone(whole)

    def of_rank(group: ProcessGroup) -> list[Tensor]:
        model, microbatches = TinyEncoder(), ranks[group.rank()]
        if len(microbatches) == 1:
            (batch,) = microbatches
            vectors = model(batch).sentence_vectors
            margin = pair_margin(vectors, batch.teacher_vectors, pairs_of(batch), IN_BATCH, ranks=group)
            margin.total.backward()
            return outcome(model, margin)
        pool = AlignmentPool(NO_ALIGNMENT, in_batch=IN_BATCH, ranks=group)
        for batch in microbatches:
            pool.collect(model(batch), batch)
        pool.solve()
        for number, batch in enumerate(microbatches):
            pool.surrogate(number, model(batch)).backward()
        assert pool.margin is not None and not pool.margin.total.requires_grad
        return outcome(model, pool.margin)

    found = [torch.stack(parts).sum(0) for parts in zip(*run_on_ranks(of_rank, len(ranks)), strict=True)]
    for value, true in zip(found, truth, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-11, atol=1e-12)


def test_pairs_that_the_teacher_has_not_seen_have_no_part() -> None:
    (batch,) = step_taught([12], 3)
    seen = batch.teacher_vectors.any(1)[batch.pairs].all(1)
    assert 0 < int(seen.sum()) < 12
    columns = (batch.pairs, batch.pair_groups, batch.pair_stream)
    pairs, groups, stream = (column[seen] for column in columns)
    without = replace(batch, pairs=pairs, pair_groups=groups, pair_stream=stream)
    for value, true in zip(alone(batch), alone(without), strict=True):
        assert torch.equal(value, true)
    assert int(alone(batch)[3].sum()) == int(seen.sum())


@pytest.mark.parametrize("implementation", ["auto", "reference", "native"])
def test_triplets_are_reported_by_stream_and_their_total_is_weighted(implementation: str) -> None:
    if implementation == "native" and cpu_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    (batch,) = step_of([4], 1)
    batch = replace(
        batch,
        triplet_anchor=torch.tensor([0, 3, 5]),
        triplet_positive=torch.tensor([1, 2, 4]),
        triplet_negatives=torch.tensor([[2, 3, -1], [0, -1, -1], [6, 7, 8]]),
        teacher_gaps=torch.tensor([[0.3, 0.1, 9.0], [0.8, 9.0, 9.0], [0.2, -0.4, 0.5]]),
        triplet_stream=torch.tensor([1, 3, 1]),
    )
    model, form = TinyEncoder(), MarginForm("hinge", 1.0, 0.2)
    vectors = model(batch).sentence_vectors.detach()
    margin = triplet_margin(model(batch), batch, WEIGHTS, form, implementation=implementation)
    expected = []
    for a, p, negatives, gaps in zip(
        batch.triplet_anchor,
        batch.triplet_positive,
        batch.triplet_negatives.tolist(),
        batch.teacher_gaps,
        strict=True,
    ):
        terms = [
            float(gap) + 0.2 - float(vectors[a] @ vectors[p] - vectors[a] @ vectors[n])
            for n, gap in zip(negatives, gaps, strict=True)
            if n >= 0
        ]
        expected.append(sum(max(0.0, term) for term in terms) / len(terms))
    assert margin.report.sums[[1, 3]].tolist() == pytest.approx(
        [expected[0] + expected[2], expected[1]], rel=1e-6
    )
    assert margin.report.terms.tolist() == [0, 2, 0, 1, 0]
    assert float(margin.total.detach()) == pytest.approx(float(margin.report.sums @ WEIGHTS), rel=1e-12)
    assert GapSums(*margin.gaps).terms == 6
    margin.total.backward()
    assert model.weight.grad is not None and model.weight.grad.any()
