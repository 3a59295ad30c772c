"""The plan of an ablation: variants that can be compared, sizes, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation import __main__ as command
from benchmarks.ablation.__main__ import PLAN, main
from benchmarks.ablation.plan import Run, lacking, read_plan, runs_of
from benchmarks.ablation.runs import Launch
from data.recipe import UserError
from data.teaching import write_manifest
from tests.benchmarks.small_plan import SHIPPED, runs_in


@pytest.mark.parametrize("preset", SHIPPED.presets)
def test_variants_differ_in_their_tasks_alone(preset: str) -> None:
    settings = SHIPPED.presets[preset]
    runs = runs_of(SHIPPED, settings, settings.seeds, [], "store")
    assert len(runs) == (len(SHIPPED.variants) - len(lacking(SHIPPED))) * len(settings.seeds)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        shared = run.recipe.model_dump(exclude={"name", "seed", "tasks"})
        shared["evaluation"].pop("before")
        first = runs[0].recipe.model_dump(exclude={"name", "seed", "tasks"})
        first["evaluation"].pop("before")
        assert shared == first, run.name
        assert run.recipe.tasks.mmlm is not None
    assert Path(settings.deepspeed_config).is_file()


def test_the_last_variant_has_every_task_of_the_others() -> None:
    tasks = {run.variant: set(run.recipe.tasks.enabled()) for run in runs_in(SHIPPED, (1,))}
    assert tasks["mmlm"] == {"mmlm"}
    assert tasks["all"] == set().union(*tasks.values())
    settings = [str(run.recipe.tasks) for run in runs_in(SHIPPED, (1,))]
    assert len(set(settings)) == len(settings)
    forms = [on.form for run in runs_in(SHIPPED, (1,)) if (on := run.recipe.tasks.adaptive_margin)]
    assert set(forms) == {"hinge", "softplus", "fixed", "mse"}
    scales = {
        run.variant: on.scale for run in runs_in(SHIPPED, (1,)) if (on := run.recipe.tasks.adaptive_margin)
    }
    assert scales["margin"] == "running" and scales["margin-scale"] == 4


def test_a_variant_that_lacks_what_it_needs_is_left_out_and_said_when_it_is_named(
    plan_file: Path, tmp_path: Path, capsys: Any
) -> None:
    teacher = tmp_path / "teacher"
    plan_file.write_text(
        plan_file.read_text().replace("{title: + CAMLM,", f"{{title: + CAMLM, needs: {teacher},")
    )
    plan = read_plan(plan_file)
    assert lacking(plan) == {"camlm": str(teacher)} and {run.variant for run in runs_in(plan)} == {
        "mmlm",
        "wrong",
    }
    assert main(["--plan", str(plan_file), "--only", "camlm"]) == 2
    assert f"--only camlm: it needs {teacher}, which python -m data.teach makes" in capsys.readouterr().err
    teacher.mkdir()
    assert {run.variant for run in runs_in(plan)} == {"mmlm", "wrong", "camlm"}


def test_a_size_may_leave_variants_to_those_who_name_them(
    plan_file: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_file.write_text(plan_file.read_text() + "    without: [wrong, camlm]\n")
    asked: list[list[str]] = []

    def run_none(runs: list[Run], launch: Launch) -> dict[str, str]:
        asked.append(sorted({run.variant for run in runs}))
        return {}

    monkeypatch.setattr(command, "run_all", run_none)
    for more in ([], ["--only", "camlm"]):
        main(
            [
                "--plan",
                str(plan_file),
                "--runs",
                str(tmp_path / "runs"),
                "--out",
                str(tmp_path / "out"),
                *more,
            ]
        )
    assert asked == [["mmlm"], ["camlm"]]
    plan_file.write_text(plan_file.read_text().replace("[wrong, camlm]", "[wrong, calm]"))
    with pytest.raises(UserError, match="presets.quick.without names 'calm'"):
        read_plan(plan_file)


def test_a_preset_may_change_single_variants(plan_file: Path) -> None:
    text = plan_file.read_text() + "    variants: {camlm: [tasks.camlm.mask_rate=0.5]}\n"
    plan_file.write_text(text)
    rates = {r.variant: on.mask_rate for r in runs_in(read_plan(plan_file)) if (on := r.recipe.tasks.camlm)}
    assert rates == {"camlm": 0.5, "wrong": 0.25}
    plan_file.write_text(text.replace("variants: {camlm: [", "variants: {calm: ["))
    with pytest.raises(UserError, match="presets.quick.variants names 'calm'; variants: mmlm, wrong, camlm"):
        read_plan(plan_file)


def test_a_run_has_another_folder_when_it_would_be_another_run() -> None:
    def name(*more: str, store: str = "s", seed: int = 1) -> str:
        return runs_in(SHIPPED, (seed,), *more, store=store)[0].name

    assert name() == name() == name("log.every=3") == name("checkpoint.every=7")
    others = [name("steps=70"), name("optimizer.learning_rate=1e-3"), name(store="t"), name(seed=2)]
    assert len({name(), *others}) == 5


def test_a_run_that_reads_what_another_teacher_said_is_another_run(tmp_path: Path) -> None:
    margin = f"tasks.in_batch_margin={{teacher: {tmp_path}}}"
    settings = ("tasks.translation_alignment={}", margin)
    with pytest.raises(UserError, match="python -m data.teach"):
        runs_in(SHIPPED, (1,), *settings)
    names = []
    for said in ("this", "that", "this"):
        write_manifest(tmp_path, {"said": said})
        names.append(runs_in(SHIPPED, (1,), *settings)[0].name)
    assert names[0] == names[2] != names[1]


def test_what_is_wrong_with_a_variant_is_said_with_its_name(plan_file: Path, capsys: Any) -> None:
    plan_file.write_text(plan_file.read_text().replace("weight: 1e-9", "wieght: 1e-9"))
    assert main(["--plan", str(plan_file), "--report"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: variant wrong:") and "did you mean 'weight'?" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "calm"], "--only calm: the plan has mmlm, wrong, camlm; did you mean 'camlm'?"),
        (["--preset", "quik"], "--preset quik: the plan has quick; did you mean 'quick'?"),
        (["--set", "store=elsewhere", "--report"], "elsewhere"),
        (["--seeds", "-1"], "seed"),
        (["--preset", "full", "--at-once", "2", "--plan", str(PLAN)], "one at a time"),
    ],
)
def test_wrong_options_are_one_message(
    plan_file: Path, options: list[str], message: str, capsys: Any
) -> None:
    assert main(["--plan", str(plan_file), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("store=other", "sets store;"),
        ("maximum_tokens=32", "sets maximum_tokens;"),
        ("steps=9", "sets steps, batch;"),
        ("batch.step_tokens=8192", "sets steps, batch;"),
    ],
)
def test_a_variant_may_not_read_other_data_or_spend_more(plan_file: Path, setting: str, said: str) -> None:
    plan = read_plan(plan_file)
    changed = plan.variants["camlm"].model_copy(update={"set": (setting,)})
    plan = plan.model_copy(update={"variants": {**plan.variants, "camlm": changed}})
    with pytest.raises(UserError, match=f"variant camlm: {said}"):
        runs_in(plan)
    runs_in(plan, (1,), setting)  # for all of them it may be set
