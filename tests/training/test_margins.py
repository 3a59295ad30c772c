"""Margin losses in a run: the same however the step is cut, with a scale that follows the gaps and survives a kill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.recipe import UserError, parse_recipe, read_recipe
from data.settings.margin import AdaptiveMarginConfig, MarginConfig
from data.settings.tasks import TasksConfig
from tests.small_teacher import write_margin_recipe
from tests.training.reference import MARGINS, Reference, steps_of, train_plainly
from tests.training.runs import WITHOUT_EVALUATION, column, final_weights, relative, train
from tests.training.test_resume import after_step, check_same, die
from training.checkpoint import Found, checkpoints_in, find
from training.config import Recipe
from training.margins import Margins
from training.metrics import read_metrics

STEPS = 4
BASE = (f"steps={STEPS}", WITHOUT_EVALUATION, "log.every=100")


@pytest.fixture(scope="module")
def margin_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_margin_recipe(tmp_path_factory.mktemp("margin"))


@pytest.fixture(scope="module")
def reference(margin_recipe: Path) -> Reference:
    recipe = parse_recipe(read_recipe(margin_recipe, BASE), Recipe)
    steps = steps_of(recipe, STEPS)
    # Without these the comparison below would say nothing.
    assert all(sum(len(batch.triplet_anchor) for batch in step) > 2 for step in steps)
    assert any((batch.triplet_negatives < 0).any() for step in steps for batch in step)
    assert all(sum(len(batch.negatives) for batch in step) > 2 for step in steps)
    taught = torch.cat([batch.teacher_vectors.any(1) for step in steps for batch in step])
    assert taught.any() and not taught.all()
    return train_plainly(recipe, steps)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "stage", "tokens"),
    [(1, 0, 4096), (1, 3, 1024), (2, 1, 1024), (2, 3, 2048), (4, 3, 1024), (4, 1, 2048)],
)
def test_margins_are_those_of_one_process_without_deepspeed(
    margin_recipe: Path, tmp_path: Path, reference: Reference, ranks: int, stage: int, tokens: int
) -> None:
    settings = (*BASE, "checkpoint.every=0", f"batch.microbatch_tokens={tokens}")
    train(margin_recipe, tmp_path, *settings, ranks=ranks, stage=stage)
    steps = read_metrics(tmp_path / "small")
    for name in (
        "loss",
        *(f"loss/{task}" for task in ("mmlm", "translation_alignment", "triplet_alignment", *MARGINS)),
        "grad_norm",
    ):
        assert relative(column(steps, name), column(reference.steps, name)) <= 2e-6, name
    for name in MARGINS:
        # Gaps of float32 vectors: their spread is small at the start, and so is the scale.
        scales = column(steps, f"margin/{name}/scale"), column(reference.steps, f"margin/{name}/scale")
        assert scales[0][0] == 1.0 and 0 < scales[0][-1] < 1.0
        assert relative(*scales) <= 1e-5
        assert all(0 < share < 1 for share in column(steps[1:], f"margin/{name}/active"))
    found = final_weights(tmp_path / "small")
    for name, truth in reference.weights.items():
        distance = (found[name].double() - truth).abs().max().item()
        assert distance <= 2e-4 * max(truth.abs().max().item(), 0.02), (name, distance)


@pytest.mark.ranks
def test_killed_and_started_again_scale_and_weights_are_bitwise_the_same(
    margin_recipe: Path, tmp_path: Path
) -> None:
    settings = (*BASE, "steps=3", "checkpoint.every=1")
    train(margin_recipe, tmp_path / "whole", *settings, ranks=2, stage=3)
    with pytest.raises(AssertionError, match="exit codes|failed"):
        train(margin_recipe, tmp_path / "killed", *settings, ranks=2, stage=3, probe=after_step(2, die))
    saved = find(tmp_path / "killed" / "small").run_state()
    described = json.loads((tmp_path / "killed" / "small" / "data.json").read_text())
    assert described["teacher of in_batch_margin"] == saved["taught"]["in_batch_margin"]
    assert saved["step"] == 1 and saved["margins"]["adaptive_margin"][0] > 0
    train(margin_recipe, tmp_path / "killed", *settings, ranks=2, stage=3)
    runs = tmp_path / "killed" / "small", tmp_path / "whole" / "small"
    check_same(*runs)
    for name in MARGINS:
        one, other = (column(read_metrics(run), f"margin/{name}/scale") for run in runs)
        assert one == other and len(set(one)) == 3


@pytest.mark.ranks
def test_a_run_does_not_go_on_with_another_teachers_vectors(margin_recipe: Path, tmp_path: Path) -> None:
    train(margin_recipe, tmp_path, *BASE, "steps=2")
    state = checkpoints_in(tmp_path / "small" / "checkpoints")[0] / "run.json"

    def forget() -> None:
        original = Found.run_state
        Found.run_state = lambda found: {**original(found), "taught": {"in_batch_margin": "another"}}  # type: ignore[method-assign]

    assert json.loads(state.read_text())["taught"].keys() == {"in_batch_margin"}
    with pytest.raises(AssertionError, match="tasks.in_batch_margin.teacher: not the vectors or scores"):
        train(margin_recipe, tmp_path, *BASE, "steps=3", probe=forget)


def sums(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    columns = [len(student), 0, student.sum(), (student**2).sum(), teacher.sum(), (teacher**2).sum()]
    return np.array(columns, dtype=np.float64)


def test_the_running_scale_is_the_ratio_of_the_spreads_and_comes_back_from_json() -> None:
    tasks = TasksConfig.model_validate({"adaptive_margin": {}})
    margins = Margins(tasks)
    assert margins.scale("adaptive_margin") == 1.0 and margins.form("in_batch_margin") is None
    random = np.random.default_rng(0)
    student, teacher = random.normal(0.3, 0.1, 500), random.normal(9.0, 5.0, 500)
    margins.update({"adaptive_margin": sums(student, teacher)})
    assert margins.scale("adaptive_margin") == pytest.approx(student.std() / teacher.std(), rel=1e-9)
    margins.update({"adaptive_margin": np.full(6, np.nan)})  # a step whose gradient was not finite
    again = Margins(tasks)
    again.restore(json.loads(json.dumps(margins.state())))
    assert again.scale("adaptive_margin") == margins.scale("adaptive_margin")
    form = again.form("adaptive_margin")
    assert form is not None and form.scale == again.scale("adaptive_margin")


def test_a_fixed_scale_stays_and_a_teacher_without_spread_is_not_divided_by() -> None:
    fixed = Margins(TasksConfig.model_validate({"adaptive_margin": {"scale": 0.25}}))
    fixed.update({"adaptive_margin": sums(np.arange(3.0), np.arange(3.0))})
    assert fixed.scale("adaptive_margin") == 0.25
    flat = Margins(TasksConfig.model_validate({"adaptive_margin": {}}))
    flat.update({"adaptive_margin": sums(np.arange(3.0), np.full(3, 2.0))})
    assert flat.scale("adaptive_margin") == 1.0


@pytest.mark.parametrize("form", ["hinge", "squared_hinge", "softplus"])
def test_a_loss_that_spreads_the_gaps_does_not_raise_its_own_margins_without_end(form: str) -> None:
    random = np.random.default_rng(0)
    teacher = np.abs(random.normal(0.05, 0.02, 400))
    found = {}
    for name, setting in (("bounded", {}), ("unbounded", {"maximum": None})):
        margins = Margins(TasksConfig.model_validate({"adaptive_margin": {"form": form, **setting}}))
        student = random.normal(0.1, 0.13, 400)
        for _ in range(200):  # what moves one gap to where it should be moves others about
            asked = margins.form("adaptive_margin")
            assert asked is not None
            target = asked.target(torch.from_numpy(teacher)).numpy()
            missing = np.maximum(target - student, 0)
            student = student + 0.1 * (missing + 6 * missing.mean() * random.normal(size=400))
            margins.update({"adaptive_margin": sums(student, teacher)})
        found[name] = float(target.mean())
    assert found["bounded"] <= 0.3 < 2 < found["unbounded"]  # no cosine has a gap above 2


def test_only_one_sided_forms_of_a_running_scale_are_bounded_and_only_if_nothing_is_said() -> None:
    def maximum(**values: object) -> float | None:
        return MarginConfig.model_validate(values).maximum

    assert maximum() == maximum(form="softplus") == maximum(scale="running") == 0.3
    assert maximum(maximum=0.7) == 0.7 and maximum(maximum=None) is None
    assert maximum(form="mse") is maximum(form="fixed", offset=1) is maximum(scale=4) is None
    assert AdaptiveMarginConfig().maximum == 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("tasks.adaptive_margin.minimum=0.5", "minimum 0.5 is above maximum 0.3"),
        ("tasks.adaptive_margin.form=fixed", "needs its margin"),
        ("tasks.adaptive_margin.scale=-1", "the opposite of the teacher"),
        ("tasks.adaptive_margin.form=hinged", "did you mean 'hinge'"),
        ("tasks.in_batch_margin={}", "tasks.in_batch_margin.teacher: missing"),
        ("tasks.adaptive_margin.negatives=9", "must hold 11 documents"),
    ],
)
def test_margins_that_can_not_be_are_refused(margin_recipe: Path, settings: str, message: str) -> None:
    changes = [settings] + (["tasks.adaptive_margin.offset=0"] if "fixed" in settings else [])
    with pytest.raises(UserError, match=message):
        parse_recipe(read_recipe(margin_recipe, changes), Recipe)


def test_triplets_without_scores_need_a_teacher(margin_recipe: Path) -> None:
    with pytest.raises(UserError, match="corpora.triplets has no scores"):
        parse_recipe(read_recipe(margin_recipe, ["corpora.triplets.scores=null"]), Recipe)
    with pytest.raises(UserError, match="rides on the pairs"):
        changes = ["tasks.translation_alignment=null", "tasks.mixed_alignment=null"]
        parse_recipe(read_recipe(margin_recipe, changes), Recipe)
