"""A step is the same step however it is cut: ranks, ZeRO stages, microbatches, empty ones, and one process without
DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import Tensor

from data.batch import PackedBatch
from data.recipe import parse_recipe, read_recipe
from data.sampling import Stream
from data.settings.tasks import TasksConfig
from data.tally import Tally
from tests.ranks import run_on_ranks
from tests.training.reference import Reference, steps_of, train_plainly
from tests.training.runs import (
    WITH_BTMLM,
    WITHOUT_EVALUATION,
    column,
    final_weights,
    launched,
    numbers,
    relative,
    save_weights,
    saved_weights,
    sharding,
    train,
)
from training.build import build_model, maker_of, open_data, planner_of, pseudo_tokens_of
from training.config import Recipe
from training.engine import Engine, StepOutcome, join_world
from training.optimizer import build_optimizer
from training.schedule import learning_rate
from training.sharding import read_sharding, resolve_sharding
from training.step import run_microbatches, sum_tallies, weights_of
from training.writing import write_pseudo_tokens

STEPS = 5
# With a small one Adam makes a whole step of what is but the rounding of a gradient, and float32 leaves float64.
EPSILON = "optimizer.epsilon=1e-3"
BASE = (f"steps={STEPS}", WITHOUT_EVALUATION, "checkpoint.every=0", "log.every=100", EPSILON, *WITH_BTMLM)
TASKS = ("mmlm", "tlm", "camlm", "btmlm", "translation_alignment", "mixed_alignment")

# (ranks, ZeRO stage, microbatch_tokens); a step has 4,096 tokens in rows of 512.
CUTS = [
    (1, 0, 1024),
    (1, 3, 4096),  # the whole step in one forward
    (2, 1, 1024),  # two microbatches a rank: the pool's two passes
    (2, 2, 2048),  # one a rank: one gather
    (2, 3, 512),  # some microbatches lack some tasks
    (3, 3, 1024),  # four microbatches on three ranks: two of them empty
    (4, 3, 1024),
    (4, 1, 2048),  # two microbatches on four ranks: two ranks without any text
]
ALL_CUTS = [
    (ranks, stage, tokens)
    for ranks in (1, 2, 3, 4)
    for stage in (0, 1, 2, 3)
    for tokens in (512, 1024, 4096)
    if (ranks, stage, tokens) not in CUTS
]


@pytest.fixture(scope="module")
def reference(small_recipe: Path) -> Reference:
    recipe = parse_recipe(read_recipe(small_recipe, BASE), Recipe)
    return train_plainly(recipe, steps_of(recipe, STEPS))


def check(run: Path, reference: Reference, *, losses: float, norms: float, weights: float) -> None:
    """All losses of all steps, gradient norms, and the weights at the end, within relative bounds."""
    steps = numbers(run)
    for name in ("loss", *(f"loss/{task}" for task in TASKS), "temperature"):
        assert relative(column(steps, name), column(reference.steps, name)) <= losses, name
    assert relative(column(steps, "grad_norm"), column(reference.steps, "grad_norm")) <= norms
    found = final_weights(run)
    assert set(found) == set(reference.weights)
    for name, truth in reference.weights.items():
        distance = (found[name].double() - truth).abs().max().item()
        assert distance <= weights * max(truth.abs().max().item(), 0.02), (name, distance)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "stage", "tokens"), [*CUTS, *(pytest.param(*cut, marks=pytest.mark.slow) for cut in ALL_CUTS)]
)
def test_losses_norms_and_weights_are_those_of_one_process_without_deepspeed(
    small_recipe: Path, tmp_path: Path, reference: Reference, ranks: int, stage: int, tokens: int
) -> None:
    train(small_recipe, tmp_path, *BASE, f"batch.microbatch_tokens={tokens}", ranks=ranks, stage=stage)
    check(tmp_path / "small", reference, losses=1e-6, norms=1e-6, weights=1e-4)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("setting", "file", "ranks"),
    [
        ("model.activation_checkpointing=true", "cpu.json", 2),
        ("workers=0", "one_process.json", 1),
        ("workers=0", "zero3_offload.json", 1),
        ("workers=0", "zero1.json", 1),
    ],
)
def test_so_it_is_with_layers_computed_twice_and_with_the_files_of_the_project(
    small_recipe: Path, tmp_path: Path, reference: Reference, setting: str, file: str, ranks: int
) -> None:
    values = read_sharding(Path("ds_configs") / file)
    train(small_recipe, tmp_path, *BASE, setting, ranks=ranks, values=values)
    check(tmp_path / "small", reference, losses=1e-6, norms=1e-6, weights=1e-4)


@pytest.mark.ranks
def test_texts_that_are_compared_several_times_are_so_on_any_ranks_and_the_table_learns_at_its_own_rate(
    small_recipe: Path, tmp_path: Path
) -> None:
    settings = (*BASE, "steps=3", "tasks.translation_alignment.texts=4", "optimizer.table_learning_rate=4e-3")
    recipe = parse_recipe(read_recipe(small_recipe, settings), Recipe)
    steps = steps_of(recipe, 3)
    assert any(torch.bincount(batch.pairs.flatten()).max() == 3 for batch in steps[0])
    train(small_recipe, tmp_path, *settings, ranks=2, stage=3)
    check(tmp_path / "small", train_plainly(recipe, steps), losses=1e-6, norms=1e-6, weights=1e-4)


def _the_order_of_modules_is_learned_in_the_first_step() -> None:
    """Stage 3 gathers every weight for each use where a forward, such as one that generates, breaks its trace."""
    invalidate, step = PartitionedParameterCoordinator._invalidate_trace, Engine.step
    learned: list[bool] = []

    def invalidated(coordinator: PartitionedParameterCoordinator) -> None:
        assert not learned, "the trace is lost again"
        invalidate(coordinator)

    def stepped(engine: Engine, rate: float) -> StepOutcome:
        if engine.stage == 3:
            learned.append(True)
        return step(engine, rate)

    PartitionedParameterCoordinator._invalidate_trace = invalidated
    Engine.step = stepped  # type: ignore[method-assign]


@pytest.mark.ranks
def test_pseudo_tokens_that_are_drawn_are_the_same_on_any_ranks(small_recipe: Path, tmp_path: Path) -> None:
    decode = (
        "tasks.btmlm={decode: {top_k: 8, temperature: 2.0}, restrict_to_language: true, pseudo_ratio: 0.8}"
    )
    found = []
    for ranks, stage, tokens in ((1, 1, 4096), (2, 3, 1024)):
        runs = tmp_path / str(ranks)
        train(
            small_recipe,
            runs,
            *BASE,
            "steps=3",
            decode,
            f"batch.microbatch_tokens={tokens}",
            ranks=ranks,
            stage=stage,
            probe=_the_order_of_modules_is_learned_in_the_first_step,
        )
        found.append(numbers(runs / "small"))
    one, other = found
    names = [name for name in one[0] if name.startswith("pseudo/")]
    assert "pseudo/distinct_1" in names and any(name.count("/") == 2 for name in names)
    # An untrained model draws from what its eight best ids are by chance: mostly of the script, and different ones.
    assert all(step["pseudo/target_script_rate"] > 0.5 and step["pseudo/distinct_1"] > 0.5 for step in one)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            # A language's own loss is that of a few pairs: float32 logits of 20 alone move it by 2e-6.
            assert theirs[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_bfloat16_stays_within_a_thousandth_of_float64(
    small_recipe: Path, tmp_path: Path, reference: Reference, ranks: int, stage: int
) -> None:
    train(small_recipe, tmp_path, *BASE, "precision=bf16", ranks=ranks, stage=stage)
    steps = numbers(tmp_path / "small")
    assert relative(column(steps, "loss"), column(reference.steps, "loss")) <= 2e-3
    # A few pseudo tokens are others in bfloat16, where two ids score nearly alike: 2 % without them.
    assert relative(column(steps, "grad_norm"), column(reference.steps, "grad_norm")) <= 3e-2


# Which tasks the four microbatches of each step hold: a head or a comparison is missing in a microbatch, in all of
# them, in the step after one that had it. ZeRO-3 would apply the last gradient of what was left out again.
ALL, MASKED, ALIGNED = set(TASKS), set(TASKS[:4]), set(TASKS[4:])
HOLES: list[list[set[str]]] = [
    [ALL, ALL, ALL, ALL],
    [MASKED, MASKED, MASKED, MASKED],
    [ALIGNED, ALIGNED, ALIGNED, ALIGNED],
    [{"btmlm"}, ALIGNED, set(), {"camlm"}],  # one rank generates, the others have nothing to
    [set(), set(), MASKED, ALIGNED],
    [ALL, ALL, ALL, ALL],
]


@pytest.fixture(scope="module")
def step_with_holes(small_recipe: Path) -> tuple[Recipe, list[list[Any]]]:
    """Microbatches of the small recipe's first steps from which some tasks are taken out."""
    recipe = parse_recipe(read_recipe(small_recipe, ["steps=6", WITHOUT_EVALUATION, *WITH_BTMLM]), Recipe)
    data = open_data(recipe)
    planner, maker = planner_of(recipe, data), maker_of(recipe)()
    steps = []
    for number, tasks_of in enumerate(HOLES, 1):
        plan = planner.plan()
        microbatches = []
        for microbatch, tasks in enumerate(tasks_of):
            records = plan.rows(2 * microbatch, 2 * microbatch + 2)
            kept = [data.streams[i].task.name in tasks for i in records[:, 0]]
            microbatches.append(maker(records[np.array(kept, dtype=bool)]))
        planner.feedback(number, plan.planned)
        steps.append(microbatches)
    return recipe, steps


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "stage"), [(1, 3), (2, 1), (2, 3), (4, 3)])
def test_a_task_that_is_absent_here_or_everywhere_leaves_no_trace_of_its_last_gradient(
    step_with_holes: tuple[Recipe, list[list[Any]]], tmp_path: Path, ranks: int, stage: int
) -> None:
    recipe, steps = step_with_holes
    truth = train_plainly(recipe, [[PackedBatch.from_arrays(m.arrays) for m in step] for step in steps])

    def of_rank(group: Any) -> list[tuple[float, float]]:
        launched()
        engine, streams = built(recipe, stage)
        pseudo = pseudo_tokens_of(recipe, open_data(recipe), engine.world.device)
        found = []
        for number, step in enumerate(steps, 1):
            mine = step[group.rank() :: ranks]
            tally, _ = sum_tallies(mine, [])
            batches = [PackedBatch.from_arrays(microbatch.arrays) for microbatch in mine]
            if tally[:, Tally.PSEUDO].any():
                assert pseudo is not None
                batches, tally, _ = write_pseudo_tokens(engine, mine, pseudo, tally)
            weights = weights_of(tally, streams, recipe.tasks, engine.world.device)
            losses = run_microbatches(engine, batches, weights, aligned=True)
            outcome = engine.step(learning_rate(number, recipe.steps, recipe.optimizer))
            found.append((float(losses.sums @ weights.double().numpy()), outcome.gradient_norm))
        save_weights(engine, tmp_path / "saved")
        return found

    for found in run_on_ranks(of_rank, ranks):
        assert relative([loss for loss, _ in found], column(truth.steps, "loss")) <= 1e-6
        # Wider than elsewhere: with few pairs, nearly solved, float32 itself is off by 3e-6 for any cut.
        assert relative([norm for _, norm in found], column(truth.steps, "grad_norm")) <= 1e-5
    weights = saved_weights(tmp_path / "saved")
    for name, true in truth.weights.items():
        assert (weights[name].double() - true).abs().max().item() <= 1e-5, name


def built(recipe: Recipe, stage: int) -> tuple[Engine, list[Stream]]:
    """The engine of a recipe as the Trainer builds it."""
    world = join_world()
    data = open_data(recipe)
    model, _ = build_model(recipe, data)
    optimizer = build_optimizer(model.named_parameters(), recipe.optimizer, world.device)
    resolved = resolve_sharding(sharding(stage), Path("ds.json"), recipe, Path("recipe.yaml"), world.ranks)
    return Engine(model, optimizer, resolved, world), data.streams


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16")],
)
def test_a_gradient_that_is_not_finite_changes_no_weight_and_is_gone_in_the_next_step(
    small_recipe: Path, tmp_path: Path, stage: int, precision: str
) -> None:
    chosen = [f"precision={precision}", "batch.microbatch_tokens=4096", "batch.step_tokens=4096"]
    recipe = parse_recipe(read_recipe(small_recipe, chosen), Recipe)
    ((batch,),) = steps_of(recipe, 1)

    def of_rank(group: Any) -> list[tuple[bool, bool]]:
        launched()
        engine, _ = built(recipe, stage)
        outcomes = []
        for number, factor in enumerate((1.0, math.nan, math.inf, 1.0)):
            output = engine(batch)
            vectors = output.sentence_vectors.sum() + output.inverse_temperature
            engine.backward((output.prediction_total / len(batch.targets) + vectors) * factor)
            outcome = engine.step(1e-3)
            outcomes.append((outcome.skipped, math.isfinite(outcome.gradient_norm)))
            save_weights(engine, tmp_path / f"step{number}")
        return outcomes

    (outcomes,) = run_on_ranks(of_rank, 1)
    assert outcomes == [(False, True), (True, False), (True, False), (False, True)]
    before, first, second, after = (saved_weights(tmp_path / f"step{number}") for number in range(4))
    assert all(torch.equal(before[name], bad[name]) for name in before for bad in (first, second))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.ranks
def test_generation_knows_no_dropout_and_leaves_training_as_it_was(small_recipe: Path) -> None:
    recipe = parse_recipe(
        read_recipe(small_recipe, [*BASE, "model.dropout=0.5", "batch.microbatch_tokens=4096"]), Recipe
    )
    data = open_data(recipe)
    microbatch = maker_of(recipe)()(planner_of(recipe, data).plan().records)

    def of_rank(group: Any) -> tuple[list[list[int]], bool, bool]:
        launched()
        engine, _ = built(recipe, 3)
        pseudo = pseudo_tokens_of(recipe, open_data(recipe), engine.world.device)
        assert pseudo is not None
        engine.train()
        written = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            (batch,), _, _ = write_pseudo_tokens(engine, [microbatch], pseudo, microbatch.tally)
            written.append(batch.token_ids[batch.slots].tolist())
        model = engine._engine
        return written, model.training, any(p.grad is not None for p in model.parameters())

    (((first, again), training, gradient),) = run_on_ranks(of_rank, 1)
    assert first == again and len(first) > 20
    assert training and not gradient


class FakeTask:
    def __init__(self, name: str, loss: str) -> None:
        self.name, self.loss = name, loss


class FakeStream:
    def __init__(self, name: str, loss: str) -> None:
        self.task = FakeTask(name, loss)


def test_each_task_is_divided_by_its_own_count_over_all_its_streams() -> None:
    streams: Sequence[Any] = [
        FakeStream("mmlm", "masked"),
        FakeStream("mmlm", "masked"),
        FakeStream("translation_alignment", "alignment"),
        FakeStream("tlm", "masked"),
    ]
    tasks = TasksConfig.model_validate({"mmlm": {"loss_weight": 3}, "translation_alignment": {}, "tlm": {}})
    tally = np.zeros((4, len(Tally)), np.int64)
    tally[:, Tally.PREDICTIONS] = [4, 8, 5, 0]
    tally[:, Tally.PAIRS] = [7, 7, 10, 7]
    weights: Tensor = weights_of(tally, streams, tasks, torch.device("cpu"))
    torch.testing.assert_close(weights, torch.tensor([3 / 12, 3 / 12, 1 / 10, 0.0]))
