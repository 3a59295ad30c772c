"""Mixed text that the model writes itself: what holds one language is given up and counted, on any ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.batch import PackedBatch
from data.microbatch import Microbatch
from data.planner import LAG
from data.recipe import parse_recipe, read_recipe
from data.scripts import find_scripts
from data.tally import Tally
from model.generation import Decoding
from model.parallel.topology import Axis
from tests.ranks import run_on_ranks
from tests.training.reference import steps_of, train_plainly
from tests.training.runs import WITHOUT_EVALUATION, final_weights, relative, train
from training.build import DataParts, maker_of, open_data, planner_of, pseudo_tokens_of
from training.config import Recipe
from training.decisions import Decisions
from training.metrics import Telemetry, read_metrics
from training.progress import MIXED
from training.writing import write_pseudo_tokens

HALF = "{weight: 30, generators: {dictionary: 1, pseudo_tokens: 2}, both_mixed: 0.4}"
ALONE = (f"tasks={{mixed_alignment: {HALF}}}", "model.language_embeddings=true", "batch.step_tokens=16384")
MADE = tuple(
    Tally[name]
    for name in ("PAIRS", "MIXED", "WORDS", "TRANSLATABLE", "LANGUAGES", "TAUGHT_PAIRS", "BY_DICTIONARY")
)


@pytest.fixture(scope="module")
def world(small_recipe: Path) -> tuple[Recipe, DataParts, list[Microbatch]]:
    """The four microbatches of a step in which the model writes two thirds of the mixed texts."""
    recipe = parse_recipe(read_recipe(small_recipe, ALONE), Recipe)
    data = open_data(recipe)
    plan = planner_of(recipe, data).plan()
    maker = replace(maker_of(recipe)(), microbatch_tokens=4096)
    return recipe, data, [maker(plan.rows(8 * n, 8 * n + 8)) for n in range(4)]


class Writer:
    """A model that writes what a test wants: copies, frequent ids of the text's own language, or of the other."""

    def __init__(self, data: DataParts, what: str) -> None:
        self.what = what
        size = data.material.tokenizer.vocabulary_size
        counts = data.store.ids_of_languages()
        scripts = find_scripts(data.material.tokenizer.pieces(range(size)), counts)
        self.shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        self.lettered = scripts.of_languages[:, scripts.of_ids]  # (L, V)
        self.foreign = ~self.lettered  # by the source: a script that it is not written in

    def __call__(self, generation: PackedBatch, decoding: Decoding) -> torch.Tensor:
        ids: list[int] = []
        starts, contexts = generation.document_starts.tolist(), generation.context_lengths.tolist()
        for start, end, context in zip(starts[:-1], starts[1:], contexts, strict=True):
            text = generation.token_ids[start : start + context]
            source, target = (int(generation.language_ids[place]) for place in (start, end - 1))
            # a placeholder stands where the token of its number would stand on the other side of the pair
            own = generation.position_ids[start + context : end] - 2 - context
            if self.what == "copies":
                ids += text[own].tolist()
                continue
            asked = source if self.what == "own words" else target
            score = np.where(self.lettered[asked], self.shares[asked], 0.0)
            if asked != source:
                score /= np.maximum(self.shares[source], 1e-5)
            score[text] = 0.0
            ids += [int(score.argmax())] * (end - start - context)
        return torch.tensor(ids, dtype=torch.int64)


def written(
    world: tuple[Recipe, DataParts, list[Microbatch]], what: str, ranks: int = 1
) -> list[tuple[list[PackedBatch], np.ndarray]]:
    """Of each rank: its batches, and the tally of the step."""
    recipe, data, microbatches = world
    pseudo = pseudo_tokens_of(recipe, data, "cpu")
    assert pseudo is not None
    before = sum(microbatch.tally for microbatch in microbatches)
    assert isinstance(before, np.ndarray)

    def of_rank(group: Any) -> tuple[list[dict[str, Any]], np.ndarray]:
        world = SimpleNamespace(device="cpu", data=Axis.of(group))
        engine: Any = SimpleNamespace(world=world, generate=Writer(data, what))
        text = write_pseudo_tokens(engine, microbatches[group.rank() :: ranks], pseudo, before)
        assert text.health is not None and text.health.sum() > 0
        return [
            {name: getattr(batch, name) for name in ("token_ids", "slots", "pairs", "pair_stream")}
            for batch in text.batches
        ], text.tally

    found = run_on_ranks(of_rank, ranks)
    return [([SimpleNamespace(**batch) for batch in batches], tally) for batches, tally in found]  # type: ignore


def undecided(microbatches: list[Microbatch]) -> list[tuple[int, np.ndarray, dict[str, Any]]]:
    """The pairs with slots: their number, what they count if they are kept, and the arrays that they are in."""
    return [
        (int(pair), counts, microbatch.arrays)
        for microbatch in microbatches
        if microbatch.unwritten is not None
        for pair, counts in zip(microbatch.unwritten.pairs, microbatch.unwritten.tallies, strict=True)
    ]


@pytest.mark.ranks
@pytest.mark.parametrize("what", ["copies", "own words"])
def test_of_a_model_that_writes_no_second_language_every_example_is_given_up_and_counted(
    world: tuple[Recipe, DataParts, list[Microbatch]], what: str
) -> None:
    _, data, microbatches = world
    waiting = undecided(microbatches)
    assert len(waiting) > 20
    ((batches, tally),) = written(world, what)
    before = sum(microbatch.tally for microbatch in microbatches)
    assert tally[:, Tally.ONE_LANGUAGE].sum() == len(waiting)
    of_streams = np.bincount(
        [arrays["pair_stream"][pair] for pair, _, arrays in waiting], minlength=len(data.streams)
    )
    assert (tally[:, Tally.ONE_LANGUAGE] == of_streams).all() and (of_streams > 0).sum() > 5  # languages
    assert (tally[:, MADE] == before[:, MADE]).all() and not tally[:, Tally.BY_PSEUDO_TOKENS].any()
    # no part in the pool, and their tokens are spent
    kept = [stream for batch in batches for stream in batch.pair_stream.tolist()]
    assert np.array_equal(np.bincount(kept, minlength=len(data.streams)), tally[:, Tally.PAIRS])
    assert (tally[:, Tally.TOKENS] == before[:, Tally.TOKENS]).all()
    assert tally[:, Tally.OVERLAP].sum() > 0  # of the dictionary's, in the microbatches that held both


@pytest.mark.ranks
def test_of_a_model_that_writes_the_other_language_every_example_is_kept_and_measured_as_it_was_written(
    world: tuple[Recipe, DataParts, list[Microbatch]],
) -> None:
    _, data, microbatches = world
    waiting = undecided(microbatches)
    ((batches, tally),) = written(world, "other words")
    before = sum(microbatch.tally for microbatch in microbatches)
    given_up = tally[:, Tally.ONE_LANGUAGE].sum()
    assert given_up <= 0.05 * len(waiting)  # languages of few texts: nothing can be proved
    of_mixed = [i for i, stream in enumerate(data.streams) if stream.task.name == MIXED]
    assert (tally[of_mixed, Tally.PAIRS] - before[of_mixed, Tally.PAIRS]).sum() == len(waiting) - given_up
    sides = tally[of_mixed].sum(0)
    assert sides[Tally.BY_PSEUDO_TOKENS] > 20
    assert sides[Tally.LANGUAGES] >= 2 * sides[Tally.MIXED]  # every example holds at least two
    if not given_up:
        # every token in a slot is a word of the other language: all of them were replaced, and none is shared
        slots = sum(len(batch.slots) for batch in batches)
        counts = sum(counts[Tally.REPLACED] for _, counts, _ in waiting)
        assert sides[Tally.REPLACED] - before[of_mixed, Tally.REPLACED].sum() == slots + counts
    copies = written(world, "copies")[0][1][of_mixed].sum(0)
    assert copies[Tally.PAIRS] == before[of_mixed, Tally.PAIRS].sum() < sides[Tally.PAIRS]


@pytest.mark.ranks
@pytest.mark.parametrize("what", ["copies", "other words"])
def test_every_number_of_ranks_finds_the_same(
    world: tuple[Recipe, DataParts, list[Microbatch]], what: str
) -> None:
    ((batches, tally),) = written(world, what)
    for ranks in (2, 3):
        found = written(world, what, ranks)
        assert all(np.array_equal(other, tally) for _, other in found)
        pairs = [batch.pairs.tolist() for theirs, _ in found for batch in theirs]
        assert sorted(pairs) == sorted(batch.pairs.tolist() for batch in batches)


def test_until_camlm_has_learned_the_other_generators_are_drawn(small_recipe: Path, tmp_path: Path) -> None:
    gated = "tasks.mixed_alignment.pseudo_tokens.gate.camlm_accuracy=0.2"
    recipe = parse_recipe(
        read_recipe(small_recipe, [*ALONE, "tasks.camlm={}", gated, "evaluation.every=1"]), Recipe
    )
    data = open_data(recipe)
    planner, maker = planner_of(recipe, data), replace(maker_of(recipe)(), microbatch_tokens=16384)
    decisions = Decisions(recipe, data.streams, planner, Telemetry(tmp_path, writes=False))
    written = []
    for step, accuracy in enumerate((0.1, 0.3, 0.1, 0.1, 0.1)):
        decisions.take(step, 0, {"masked/camlm/accuracy": accuracy})
        plan = planner.plan()
        tally = maker(plan.records, plan.shut).tally
        planner.feedback(step + 1, tally[:, Tally.TOKENS])
        written.append(bool(tally[:, Tally.PSEUDO].any()))
        assert written[-1] != bool(plan.shut)
        assert tally[:, Tally.BY_DICTIONARY].sum() > 0
    assert written == [step > 1 + LAG for step in range(1, 6)]  # decided after the first


STEPS = 4
TRAINED = (
    WITHOUT_EVALUATION, "checkpoint.every=0", "log.every=100", f"steps={STEPS}", "model.language_embeddings=true",
    f"tasks.mixed_alignment={HALF}", "tasks.mixed_alignment.pseudo_tokens.gate.tokens=4000",
    "optimizer.epsilon=1e-3",  # with a small one Adam makes a whole step of what is but the rounding of a gradient
)  # fmt: skip


@pytest.mark.ranks
def test_training_on_what_was_kept_is_that_of_one_process_on_any_cut(
    small_recipe: Path, tmp_path: Path
) -> None:
    recipe = parse_recipe(read_recipe(small_recipe, TRAINED), Recipe)
    truth = train_plainly(recipe, steps_of(recipe, STEPS))
    given_up = [step["mixed/one_language"] for step in truth.steps]
    assert given_up[0] == 0 and sum(given_up) > 5  # the gate was shut in the first step
    kept = 0.0
    for ranks, stage, tokens in ((1, 1, 4096), (2, 3, 1024), (4, 3, 512)):
        runs = tmp_path / str(ranks)
        train(
            small_recipe, runs, *TRAINED, f"batch.microbatch_tokens={tokens}", ranks=ranks, stage=stage
        )  # fmt: skip
        steps = read_metrics(runs / "small")
        assert [step["mixed/one_language"] for step in steps] == given_up
        for name in ("loss", f"loss/{MIXED}", "loss/mmlm", "grad_norm"):
            assert relative([s[name] for s in steps], [s[name] for s in truth.steps]) <= 1e-6, name
        weights = final_weights(runs / "small")
        for name, true in truth.weights.items():
            distance = (weights[name].double() - true).abs().max().item()
            assert distance <= 1e-4 * max(true.abs().max().item(), 0.02), (name, distance)
        assert "mixed/generator/pseudo_tokens" not in steps[0]
        kept += sum(step.get("mixed/generator/pseudo_tokens", 0.0) for step in steps)
        assert all(step["mixed/languages"] >= 2 for step in steps)
    assert kept > 0
