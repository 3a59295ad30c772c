"""Runs whose evaluations decide: budgets move, training completes, and neither look-ahead nor a resume changes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.microbatch import Microbatch
from data.planner import LAG
from data.stream import BatchStream
from tests.training.runs import column, final_weights, numbers, train
from tests.training.test_resume import after_step, die
from training.checkpoint import checkpoints_in, find
from training.metrics import read_evaluations, read_events, read_metrics
from training.saved_run import load_run

pytestmark = pytest.mark.ranks

# Any loss has converged as soon as it was measured twice. CAMLM is trained from the second stage on, so MMLM converges
# first and gives; then CAMLM has, and both are complete.
SETTINGS = (
    "steps=10",
    "tasks={mmlm: {}, camlm: {}, translation_alignment: {}}",
    "evaluation={every: 2, masked: [test], maximum_rows: 2}",
    "convergence={window: 1, smoothing: 0, relative_tolerance: 0.9}",
    "sampling={stages: [{tokens: 9000, weights: {camlm: 0}}, {weights: {camlm: 1}}]}",
    "log.every=100",
)


def of(run: Path, name: str) -> list[dict]:
    return [event for event in read_events(run) if event["event"] == name]


def planned_ahead() -> None:
    """A probe: steps are planned as far ahead as worker processes need it."""

    def following(self: BatchStream) -> list[Microbatch]:
        while len(self._ahead) <= LAG:
            self._ahead.append(self._planned())  # type: ignore[arg-type]
        assert self._maker is not None
        return [self._maker(*planned) for planned in self._ahead.popleft()]  # type: ignore[arg-type]

    BatchStream.next = following  # type: ignore[method-assign]


def test_it_completes_says_so_again_goes_on_when_asked_and_is_the_same_however_it_was_run(
    small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(small_recipe, tmp_path / "a", *SETTINGS, "checkpoint.every=0")
    run = tmp_path / "a" / "small"
    steps = read_metrics(run)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert column(steps, "sampling/stage") == [1, 1, 1, 2, 2, 2]
    assert column(steps, "sampling/budget/camlm") == [0, 0, 0] + [pytest.approx(0.25)] * 3
    (stage,) = of(run, "stage")
    assert stage["step"] == 3 and stage["shares"]["camlm"] == [0, 0]
    assert stage["shares"]["mmlm"] == [pytest.approx(0.5, abs=0.02)] * 2
    first, last = of(run, "convergence")
    assert first["step"] == 4 and first["moved"] == {"moved/mmlm/camlm": 0.5} and not first["complete"]
    assert first["mmlm"]["converged"] and not first["camlm"]["converged"]
    assert (
        last["step"] == 6 and last["complete"] and last["stops"] and last["moved"] == {"moved/mmlm/camlm": 0}
    )
    (complete,) = of(run, "complete")
    assert complete["step"] == 6 and "converged on held-out text after step 6" in complete["reason"]
    assert set(read_evaluations(run)) == {0, 2, 4, 6}
    # Its newest checkpoint is that of the last step, with the rule's state, and opens for the export.
    (checkpoint,) = checkpoints_in(run / "checkpoints")
    assert find(checkpoint).run_state()["decisions"]["convergence"]["complete_since"] == 6
    assert load_run(run).step == 6
    said = capfd.readouterr().out
    assert "complete after step 6: both tasks had converged" in said and "convergence.stop=false" in said

    train(small_recipe, tmp_path / "a", *SETTINGS, "checkpoint.every=0")
    assert "complete after step 6: both tasks had converged" in capfd.readouterr().out
    assert len(read_metrics(run)) == 6 and len(of(run, "complete")) == 1

    train(small_recipe, tmp_path / "a", *SETTINGS, "convergence.stop=false")
    steps = read_metrics(run)
    assert len(steps) == 10
    budgets = column(
        steps, "sampling/budget/camlm"
    )  # moved after step 4 and back after 6, in force three later
    assert budgets[3:] == [pytest.approx(b) for b in (0.25, 0.25, 0.25, 0.5, 0.5, 0.25, 0.25)]

    # Never stopped, planned ahead as workers do, killed after an evaluation that came after its checkpoint.
    other = (*SETTINGS, "convergence.stop=false", "checkpoint.every=2")
    with pytest.raises(AssertionError, match="exit codes|failed"):
        train(small_recipe, tmp_path / "b", *other, probe=lambda: (planned_ahead(), after_step(5, die)()))
    train(small_recipe, tmp_path / "b", *other, probe=planned_ahead)
    assert str(numbers(tmp_path / "b" / "small")) == str(numbers(run))  # as text: nan is not equal to nan
    mine, theirs = final_weights(tmp_path / "b" / "small"), final_weights(run)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [e["step"] for e in of(tmp_path / "b" / "small", "convergence")][:2] == [
        4,
        4,
    ]  # said again by the resume


def test_a_run_without_text_that_may_still_be_read_is_complete(
    small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ("steps=900", "tasks={mmlm: {}}", "sampling={maximum_epochs: 1}", "log.every=100",
                "batch={step_tokens: 8192, row_tokens: 2048, microbatch_tokens: 8192}",
                "evaluation={masked: [test], maximum_rows: 2}", "checkpoint.every=0")  # fmt: skip
    train(small_recipe, tmp_path, *settings)
    run = tmp_path / "small"
    steps = read_metrics(run)
    done = len(steps)
    (complete,) = of(run, "complete")
    assert 2 <= done < 20 and complete["step"] == done and "maximum_epochs" in complete["reason"]
    assert set(read_evaluations(run)) == {0, done}
    assert "complete after step" in capfd.readouterr().out
    train(small_recipe, tmp_path, *settings)
    assert "model.start_from" in capfd.readouterr().out
    assert len(read_metrics(run)) == done and len(of(run, "complete")) == 1
    shares = of(run, "shares")[-1]["shares"]
    assert sum(share for share, _ in shares.values()) == pytest.approx(1)
    assert json.loads(json.dumps(shares)) == shares


def test_masked_sets_that_do_not_measure_the_task_are_refused_at_the_first_evaluation(
    small_recipe: Path, tmp_path: Path
) -> None:
    def blind() -> None:
        from training.evaluation import Evaluator

        whole = Evaluator.__call__
        Evaluator.__call__ = lambda self, *of_step: {  # type: ignore[method-assign]
            name: value for name, value in whole(self, *of_step).items() if "camlm/" not in name
        }

    with pytest.raises(AssertionError, match="the rule of convergence needs masked/camlm/loss"):
        train(small_recipe, tmp_path, *SETTINGS, probe=blind)


def test_back_translation_begins_when_camlm_has_learned_and_mmlm_has_its_budget_until_then(
    small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gated = "tasks={mmlm: {}, btmlm: {gate: {camlm_accuracy: 1e-9}}, camlm: {}}"
    judged = (*SETTINGS[2:4], "convergence.pseudo_tokens=frozen")
    settings = (*judged, "model.language_embeddings=true", "checkpoint.every=0", "log.every=100")
    train(small_recipe, tmp_path, gated, *settings)
    run = tmp_path / "small"
    steps = read_metrics(run)
    (gate,) = of(run, "gate")
    assert gate["task"] == "btmlm" and 2 <= gate["step"] <= 3 and gate["camlm_accuracy"] > 0
    opened = gate["step"] + LAG
    assert opened < 6
    for step in steps:
        shut = step["step"] <= opened
        assert step["sampling/budget/btmlm"] == pytest.approx(0 if shut else 0.25)
        assert step["sampling/budget/mmlm"] == pytest.approx(0.5 if shut else 0.25)
        assert (step["loss/btmlm"] > 0) != shut
    assert steps[opened - 1]["share/btmlm"] == 0 and steps[-1]["share/btmlm"] > 0
    # The rule looks at BTMLM's loss on frozen pseudo tokens, from when there are such.
    (first, *_) = of(run, "convergence")
    assert first["step"] == 4 and first["camlm"]["converged"] and not first["btmlm"]["converged"]
    evaluations = read_evaluations(run)
    assert "masked/btmlm/loss" in evaluations[0] and "masked/btmlm_frozen/loss" not in evaluations[4]
    (*_, last) = of(run, "convergence")
    assert last["step"] == 6 and last["btmlm"]["loss"] == evaluations[6]["masked/btmlm_frozen/loss"]
    assert "btmlm begins: held-out CAMLM accuracy" in capfd.readouterr().out
