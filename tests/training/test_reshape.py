"""A run goes on at any number of ranks and any ZeRO stage by the same command: the same state, the same data, the
same losses as if it had never been stopped."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.training.runs import (
    WITHOUT_EVALUATION,
    save_weights,
    saved_weights,
    sharding,
    train,
)
from training import trainer
from training.checkpoint import newest
from training.metrics import read_events, read_metrics
from training.optimizer_state import STATES

pytestmark = pytest.mark.ranks


class Size(NamedTuple):
    """How a part of a run is sharded."""

    ranks: int  # tensor ranks x data ranks
    stage: int
    changes: dict[str, Any] = {}
    tensor: int = 1


SUB_GROUPS = {"sub_group_size": 3000}  # several flat tensors a rank
KEPT_WHOLE = {"stage3_param_persistence_threshold": 10_000}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
ROUND_ROBIN = {"round_robin_gradients": True}
ONES = (Size(1, 3), Size(2, 1), Size(1, 0), Size(2, 3, SUB_GROUPS))
SETTINGS = (WITHOUT_EVALUATION, "log.every=100", "checkpoint.keep=2", "checkpoint.every=0")


def one_step_each(sizes: list[Size], recipe: Path, runs: Path, *settings: str) -> Path:
    """A run of as many steps as sizes, each by a start of its own; after every start its state is compared, bit by
    bit, with what was saved."""
    run = runs / "small"
    for number, (ranks, stage, changes, tensor) in enumerate(sizes):
        filled = runs / f"filled{number}"
        saved = newest(run / "checkpoints")
        values = sharding(stage)
        values["zero_optimization"] |= changes
        cut = f"parallel.tensor={tensor}"
        train(recipe, runs, *SETTINGS, *settings, cut, ranks=ranks, values=values, probe=one_step(filled))
        assert (saved is not None) == filled.exists() == (number > 0)
        if saved is not None:
            shards = saved.shards()
            for kind in STATES:
                found = saved_weights(filled, kind)
                assert found.keys() == shards.cuts.keys()
                for name, tensor in found.items():
                    assert torch.equal(tensor, shards.whole(name, kind)), (sizes[number], kind, name)
                    assert kind == "weight" or number == 0 or bool(tensor.any()), (kind, name)
    return run


def one_step(filled: Path) -> Callable[[], None]:
    """A probe that stops after a step, and keeps what was made of the checkpoint before it."""

    def probe() -> None:
        trainer.Requests.seen = lambda self: (True, False)  # type: ignore[method-assign]
        original = trainer.Trainer._resume

        def resume(self: trainer.Trainer, *arguments: Any) -> None:
            original(self, *arguments)
            save_weights(self.engine, filled)

        trainer.Trainer._resume = resume  # type: ignore[method-assign]

    return probe


def check(run: Path, whole: Path, losses: float) -> None:
    """Losses within a bound; all that is counted of the data the same."""
    mine, theirs = read_metrics(run), read_metrics(whole)
    assert len(mine) == len(theirs) > 1
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            kind = name.split("/")[0]
            if kind == "loss":
                # A language's loss is a mean over a handful of float32 numbers, a task's over tens or hundreds: of
                # cosines times 20, of which one alone is rounded by 1e-6.
                bound = losses * (1, 2, 10)[name.count("/")]
                assert abs(one[name] - value) <= bound * max(1.0, abs(value)), (name, one["step"])
            elif kind in ("share", "tokens", "packing_efficiency", "learning_rate"):
                assert one[name] == value, (name, one["step"])


@pytest.fixture(scope="module")
def whole(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs that were never stopped, on one rank."""
    folder = tmp_path_factory.mktemp("whole")

    def run(*settings: str) -> Path:
        runs = folder / "-".join(settings).replace("/", "_")
        if not runs.exists():
            train(small_recipe, runs, *SETTINGS, *settings, ranks=1, stage=1)
        return runs / "small"

    return run


def test_ranks_and_stage_change_between_any_two_steps(
    small_recipe: Path, tmp_path: Path, whole: Callable[..., Path]
) -> None:
    run = one_step_each(list(ONES), small_recipe, tmp_path, f"steps={len(ONES)}")
    check(run, whole(f"steps={len(ONES)}"), 1e-6)
    # What comes next too: documents, masks, mixed text and negatives are made of the planner's state alone.
    assert planner_state(run) == planner_state(whole(f"steps={len(ONES)}"))
    assert [event["step"] for event in read_events(run) if event["event"] == "resume"] == [1, 2, 3]


def planner_state(run: Path) -> dict[str, Any]:
    found = newest(run / "checkpoints")
    assert found is not None
    state: dict[str, Any] = found.run_state()["planner"]
    return state


# Four heads, so that there can be four tensor ranks; a table of an odd number of rows, so that parts are filled up.
FOUR_HEADS = ("model.heads=4", "model.vocabulary_size=2003")


def test_the_model_is_cut_otherwise_between_any_two_steps(
    small_recipe: Path, tmp_path: Path, whole: Callable[..., Path]
) -> None:
    sizes = [Size(2, 1, tensor=2), Size(1, 3), Size(4, 3, tensor=2), Size(2, 0, tensor=2)]
    run = one_step_each(sizes, small_recipe, tmp_path, "steps=4", *FOUR_HEADS)
    check(run, whole("steps=4", *FOUR_HEADS), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("precision", "losses"), [("fp32", 1e-6), ("bf16", 5e-3)])
def test_a_chain_of_reshapings_is_the_run_that_was_never_stopped(
    small_recipe: Path, tmp_path: Path, whole: Callable[..., Path], precision: str, losses: float, seed: int
) -> None:
    draw = random.Random(seed)
    sizes: list[Size] = []
    while len(sizes) < 10:
        stage = draw.randrange(4)
        choices = [{}, OFFLOADED] if stage else [{}]
        choices += [SUB_GROUPS, KEPT_WHOLE] if stage == 3 else [ROUND_ROBIN] if stage == 2 else []
        ranks, tensor = draw.choice([(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (4, 4)])
        size = Size(ranks, stage, draw.choice(choices), tensor)
        if not sizes or (ranks, stage, tensor) != (sizes[-1].ranks, sizes[-1].stage, sizes[-1].tensor):
            sizes.append(size)
    settings = (f"steps={len(sizes)}", f"precision={precision}", *FOUR_HEADS)
    run = one_step_each(sizes, small_recipe, tmp_path, *settings)
    check(run, whole(*settings), losses)


@pytest.mark.slow
def test_offloaded_state_and_gradients_in_another_order_are_found_where_they_lie(
    small_recipe: Path, tmp_path: Path, whole: Callable[..., Path]
) -> None:
    sizes = [Size(2, 2, ROUND_ROBIN), Size(2, 3, OFFLOADED), Size(2, 1, OFFLOADED), Size(1, 1)]
    run = one_step_each(sizes, small_recipe, tmp_path, "steps=4")
    check(run, whole("steps=4"), 1e-6)
