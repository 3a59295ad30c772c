"""A run as a whole: the golden curve, what it refuses to begin or go on with, what it writes, where it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.preparation import prepare
from data.recipe import parse_recipe, read_recipe
from tests.small_run import write_small_recipe
from tests.training.golden import GOLDEN, golden_losses, read_golden
from tests.training.runs import WITHOUT_EVALUATION, call, column, numbers, relative, train
from training import trainer
from training.checkpoint import checkpoints_in
from training.config import Recipe
from training.evaluate import main as evaluate_main
from training.exported import export
from training.metrics import read_evaluations, read_events, read_metrics
from training.saved_run import load_run

pytestmark = pytest.mark.ranks


def test_the_losses_are_those_of_the_golden_curve(small_recipe: Path, tmp_path: Path) -> None:
    found, golden = golden_losses(small_recipe, tmp_path), read_golden()
    assert [step.keys() for step in found] == [step.keys() for step in golden]
    worst = max(relative(column(found, name), column(golden, name)) for name in golden[0])
    assert worst <= 1e-5, (
        f"the losses of the small recipe moved by {worst:.1e} (relative). If that was not meant, a change broke"
        f" something. If it was (other documents, another initialisation ...), write {GOLDEN} anew with"
        " 'python -m tests.training.golden' and say why in the commit."
    )


def test_steps_without_a_finite_gradient_end_the_run_and_what_was_saved_stays(
    small_recipe: Path, tmp_path: Path
) -> None:
    def impatient() -> None:
        trainer._SKIPS_IN_A_ROW = 2

    settings = (
        "optimizer.learning_rate=1e30",
        "optimizer.warmup_steps=0",
        "checkpoint.every=1",
        WITHOUT_EVALUATION,
    )
    with pytest.raises(AssertionError, match="UserError: step 3: no finite gradient in 2 steps"):
        train(small_recipe, tmp_path, *settings, probe=impatient)
    run = tmp_path / "small"
    skips = [event["step"] for event in read_events(run) if event["event"] == "skip"]
    assert skips == [2, 3]
    assert checkpoints_in(run / "checkpoints")


@pytest.mark.parametrize("evaluation", [WITHOUT_EVALUATION, "evaluation.masked=[]"])
def test_a_step_too_small_for_every_task_is_refused_before_anything_is_done(
    small_recipe: Path, tmp_path: Path, evaluation: str
) -> None:
    small = "batch={step_tokens: 128, row_tokens: 128, microbatch_tokens: 128}"
    with pytest.raises(AssertionError, match="holds no document of .*: make the step larger"):
        train(small_recipe, tmp_path, small, evaluation)
    assert not read_metrics(tmp_path / "small") and not read_evaluations(tmp_path / "small")


def test_what_a_run_writes_down(
    small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ("steps=4", "evaluation.every=2", "evaluation.masked=[]", "log.tensorboard=true")
    train(small_recipe, tmp_path, *settings, "evaluation.retrieval={test: {corpus: test}}", stage=3)
    run = tmp_path / "small"
    steps = read_metrics(run)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for task in ("mmlm", "tlm", "camlm", "translation_alignment", "mixed_alignment"):
        assert all(step[f"loss/{task}"] > 0 and 0 <= step[f"share/{task}"] <= 1 for step in steps)
        assert any(name.startswith(f"loss/{task}/") for name in steps[0])
    for name in ("learning_rate", "grad_norm", "tokens_per_second", "packing_efficiency", "temperature", "memory_gib",
                 "eta_seconds", "mixed/realised_rate"):  # fmt: skip
        assert all(step[name] >= 0 for step in steps), name
    assert sum(steps[0][f"budget/{task}"] for task in ("mmlm", "tlm", "camlm")) == pytest.approx(0.5)
    assert set(read_evaluations(run)) == {0, 2, 4}
    assert run_ahead(run) == [True]
    assert list((run / "tensorboard").iterdir())
    train(small_recipe, tmp_path, *settings, "evaluation.retrieval={test: {corpus: test}}", stage=3)
    assert "every step is done" in capfd.readouterr().out
    assert len(read_metrics(run)) == 4 and set(read_evaluations(run)) == {0, 2, 4}
    # Killed in its last evaluation, after its last save: the same command makes up for it.
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    last = max(n for n, line in enumerate(events) if '"evaluation"' in line)
    (run / "events.jsonl").write_text("".join(events[:last]))
    assert set(read_evaluations(run)) == {0, 2}
    train(small_recipe, tmp_path, *settings, "evaluation.retrieval={test: {corpus: test}}", stage=3)
    assert len(read_metrics(run)) == 4 and set(read_evaluations(run)) == {0, 2, 4}


def test_more_steps_can_be_asked_for_of_a_run_that_is_done(small_recipe: Path, tmp_path: Path) -> None:
    constant = ("optimizer.schedule=constant", WITHOUT_EVALUATION)
    train(small_recipe, tmp_path / "parts", *constant, "steps=3")
    train(small_recipe, tmp_path / "parts", *constant, "steps=5")
    train(small_recipe, tmp_path / "whole", *constant, "steps=5")
    assert numbers(tmp_path / "parts" / "small") == numbers(tmp_path / "whole" / "small")
    assert run_ahead(tmp_path / "parts" / "small") == [False, False]


def run_ahead(run: Path) -> list[bool]:
    """Of every start that took a step, whether a step was run ahead of it."""
    return ["dry batch" in event["seconds"] for event in read_events(run) if event["event"] == "start_up"]


def test_a_run_starts_from_an_exported_model_with_its_tokenizer(
    small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    after_alone = "evaluation={before: false, retrieval: {test: {corpus: test}}}"
    train(small_recipe, tmp_path / "runs", "steps=2", after_alone)
    assert set(read_evaluations(tmp_path / "runs" / "small")) == {2}
    model = tmp_path / "model"
    export(load_run(tmp_path / "runs" / "small"), model)
    recipe = write_small_recipe(tmp_path)
    settings = [
        f"tokenizer={{path: {model}}}", f"model={{start_from: {model}}}", "name=next", "steps=2",
        "evaluation.masked=[]", "evaluation.retrieval={test: {corpus: test}}",
    ]  # fmt: skip
    prepare(parse_recipe(read_recipe(recipe, settings), Recipe), workers=1, say=lambda message: None)
    capfd.readouterr()
    train(recipe, tmp_path / "runs", *settings)
    assert f"started from {model}, all of it" in capfd.readouterr().out
    out = tmp_path / "figures.json"
    chosen = tmp_path / "runs" / "next" / "recipe.resolved.yaml"
    (done,) = call(evaluate_main, model, "--recipe", chosen, "--out", out)
    assert done.status == 0, done
    before = read_evaluations(tmp_path / "runs" / "next")[0]
    assert json.loads(out.read_text())["model"] == pytest.approx(before, abs=1e-9)
