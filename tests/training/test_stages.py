"""Every ZeRO stage trains alike in bf16, and the dry batch before an evaluation leaves no trace at any of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.runs import (
    WITHOUT_EVALUATION,
    call,
    column,
    final_weights,
    numbers,
    relative,
    train,
)
from training import trainer
from training.export import main as export_main
from training.metrics import read_metrics

pytestmark = pytest.mark.ranks

RUN = (WITHOUT_EVALUATION, "steps=3", "checkpoint.every=0", "log.every=100")
CASES = [
    (0, "bf16"),
    (3, "bf16"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32")]
    ),
]


def with_dry_batch() -> None:
    trainer.Trainer._evaluates_before = lambda self: True  # type: ignore[method-assign]
    dry_step = trainer.Engine.dry_step
    done: list[float] = []
    trainer.Engine.dry_step = lambda self: done.append(dry_step(self)) or done[-1]  # type: ignore
    evaluate = trainer.Trainer._evaluate

    def watched(self: trainer.Trainer) -> None:
        assert len(done) == 1
        evaluate(self)

    trainer.Trainer._evaluate = watched  # type: ignore[method-assign]


class Runs:
    """Runs on two ranks with two microbatches each, made once."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    def __call__(self, stage: int, precision: str, probe: Callable[[], None] | None = None) -> Path:
        runs = self.folder / f"{stage}{precision}{probe is not None}"
        if not runs.exists():
            train(self.recipe, runs, *RUN, f"precision={precision}", ranks=2, stage=stage, probe=probe)
        return runs / "small"


@pytest.fixture(scope="module")
def runs(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(small_recipe, tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_the_dry_batch_leaves_no_trace(runs: Runs, stage: int, precision: str) -> None:
    mine, truth = runs(stage, precision, with_dry_batch), runs(stage, precision)
    assert numbers(mine) == numbers(truth)
    weights, theirs = final_weights(mine), final_weights(truth)
    assert weights.keys() == theirs.keys() and all(
        torch.equal(weights[name], theirs[name]) for name in weights
    )


def test_stage_0_in_bf16_steps_as_stage_1_does_and_leaves_as_its_masters(runs: Runs, tmp_path: Path) -> None:
    mine, truth = read_metrics(runs(0, "bf16")), read_metrics(runs(1, "bf16"))
    for name in ("loss", "grad_norm"):
        assert relative(column(mine, name), column(truth, name)) <= 2e-3
    weights, theirs = final_weights(runs(0, "bf16")), final_weights(runs(1, "bf16"))
    for name, weight in weights.items():
        # Steps of Adam are as long as the rate, whatever the gradient: 1e-3 at most here, over three of them.
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=2e-4)
    table = weights["encoder.embedding.word.weight"]
    assert table.dtype == torch.float32 and not torch.equal(table, table.bfloat16().float())
    (done,) = call(export_main, runs(0, "bf16"), tmp_path / "out")
    assert done.status == 0, done


@pytest.mark.parametrize("ahead", [False, True])
def test_a_gradient_that_is_not_finite_is_found_in_the_first_step(
    small_recipe: Path, tmp_path: Path, ahead: bool
) -> None:
    def probe() -> None:
        if ahead:
            trainer.Trainer._evaluates_before = lambda self: True  # type: ignore[method-assign]
        original = trainer.build_model

        def build(*arguments: object) -> object:
            model, fresh = original(*arguments)
            layer = model.encoder.layers[0]
            next(iter(layer.parameters())).register_hook(lambda gradient: gradient * float("nan"))
            return model, fresh

        trainer.build_model = build  # type: ignore[assignment]

    for stage in (0, 3):
        with pytest.raises(AssertionError, match="gradient of the first step: not finite"):
            train(small_recipe, tmp_path, *RUN, stage=stage, probe=probe)
        assert not read_metrics(tmp_path / "small") and not list((tmp_path / "small/checkpoints").glob("*"))
