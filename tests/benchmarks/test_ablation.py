"""The ablation: a fair plan, runs that survive interruption and failure, a table that says what was measured."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation import __main__ as command
from benchmarks.ablation import runs as runner
from benchmarks.ablation.__main__ import PLAN, main
from benchmarks.ablation.clock import commands_of, record_command, record_run, seconds_of
from benchmarks.ablation.plan import Plan, Run, lacking, read_plan, runs_of
from benchmarks.ablation.report import write_report
from benchmarks.ablation.runs import Launch, cores, last_step, results_of, run_all
from benchmarks.ablation.table import BEFORE, markdown, plain, table_of
from data.recipe import UserError
from data.teaching import write_manifest
from training.metrics import Telemetry, read_evaluations

SHIPPED = read_plan(PLAN)
PLAN_TEXT = """
recipe: {recipe}
variants:
  mmlm: {{title: MMLM, set: ["tasks={{mmlm: {{}}}}", evaluation.before=true]}}
  wrong: {{title: + nothing, set: ["tasks={{mmlm: {{}}, tlm: {{weight: 1e-9}}, camlm: {{}}}}"]}}
  camlm: {{title: + CAMLM, set: ["tasks={{mmlm: {{}}, camlm: {{}}}}"]}}
presets:
  quick:
    seeds: [1, 2]
    launcher: python
    deepspeed_config: ds_configs/zero1.json
    set: [steps=3, evaluation.before=false]
"""


@pytest.fixture
def plan_file(small_recipe: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN_TEXT.format(recipe=small_recipe))
    return path


def runs_in(plan: Plan, seeds: tuple[int, ...] = (1, 2), *more: str, store: str = "s") -> list[Run]:
    return runs_of(plan, plan.presets["quick"], seeds, more, store)


# ---- the plan ----------------------------------------------------------------------------------------------


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


# ---- running -----------------------------------------------------------------------------------------------

FAKE = """
import json, os, pathlib, sys, time
began = time.time()
folder, steps, variant = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    file.write("x")
if variant == "wrong":
    print("error: no good\\n  since it is wrong", flush=True)
    sys.exit(2)
if variant == "stopped":
    sys.exit(0)
if variant == "slow":
    import signal
    def stop(number, frame):
        (folder / "stopped").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    (folder / "ready").touch()
    time.sleep(60)
time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
(folder / "times").write_text(json.dumps([began, time.time()]))
with (folder / "events.jsonl").open("a") as file:
    file.write(json.dumps({"event": "evaluation", "step": steps, "scalars": {"masked/mmlm/accuracy": 0.5}}) + "\\n")
"""


class FakeLaunch(Launch):
    """Starts a program that leaves what a run leaves, without torch."""

    def command(self, run: Run) -> list[str]:
        return [sys.executable, "-c", FAKE, str(self.folder / run.name), str(run.recipe.steps), run.variant]


def launch(folder: Path, plan: Plan, at_once: int = 2) -> FakeLaunch:
    return FakeLaunch(folder, plan.presets["quick"], plan.recipe, at_once)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.01)


def starts(folder: Path, runs: list[Run]) -> dict[str, int]:
    paths = {f"{run.variant}/{run.seed}": folder / run.name / "starts" for run in runs}
    return {name: len(path.read_text()) if path.exists() else 0 for name, path in paths.items()}


def test_a_failure_is_told_and_the_others_go_on(plan_file: Path, tmp_path: Path, capsys: Any) -> None:
    plan = read_plan(plan_file)
    runs = runs_in(plan)
    failures = run_all(runs, launch(tmp_path, plan))
    assert set(failures) == {run.name for run in runs if run.variant == "wrong"}
    for name, why in failures.items():
        assert why == f"exit status 2; error: no good (log: {tmp_path / name}.log)"
    assert starts(tmp_path, runs) == {f"{v}/{s}": 1 for s in (1, 2) for v in ("mmlm", "wrong", "camlm")}
    out = capsys.readouterr().out
    assert "[6/6]" in out and "wrong, seed 2: failed: exit status 2; error: no good" in out
    clock = commands_of(tmp_path, [run.name for run in runs])
    assert clock is not None and (clock.number, clock.at_once) == (1, 2) and clock.cores == cores()
    first = seconds_of(tmp_path)
    assert set(first) == {run.name for run in runs} and 0 < max(first.values()) <= clock.seconds
    # again: what is finished is left alone, what failed is tried once more
    run_all(runs, launch(tmp_path, plan))
    for run in runs:
        assert (seconds_of(tmp_path)[run.name] > first[run.name]) == (run.variant == "wrong")
    again = commands_of(tmp_path, [run.name for run in runs])
    assert again is not None and again.number == 2 and again.seconds > clock.seconds
    assert commands_of(tmp_path, [runs[0].name]) == clock  # the second had nothing to do for it
    assert starts(tmp_path, runs) == {
        "mmlm/1": 1, "camlm/1": 1, "mmlm/2": 1, "camlm/2": 1, "wrong/1": 2, "wrong/2": 2
    }  # fmt: skip
    # with another setting they are other runs
    changed = [run for run in runs_in(plan, (1,), "steps=4") if run.variant == "mmlm"]
    run_all(changed, launch(tmp_path, plan))
    assert starts(tmp_path, changed) == {"mmlm/1": 1}


def test_a_run_that_was_stopped_is_not_taken_for_finished(plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(plan_file.read_text().replace("  wrong:", "  stopped:"))
    plan = read_plan(plan_file)
    (run,) = (run for run in runs_in(plan, (1,)) if run.variant == "stopped")
    assert "stopped before its last step" in run_all([run], launch(tmp_path, plan))[run.name]
    assert results_of(tmp_path, run) is None


def test_as_many_runs_as_asked_for_are_under_way_at_a_time(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_file.write_text(plan_file.read_text().replace("  wrong:", "  other:"))
    plan = read_plan(plan_file)
    runs = runs_in(plan)
    monkeypatch.setenv("FAKE_SECONDS", "0.7")
    run_all(runs, launch(tmp_path, plan, at_once=3))
    times = [json.loads((tmp_path / run.name / "times").read_text()) for run in runs]
    assert max(sum(begin <= other[0] < end for begin, end in times) for other in times) == 3


def test_an_interrupted_runner_lets_its_runs_save(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_end_with_parent", lambda: None)  # the runner itself is to ask them
    plan_file.write_text(plan_file.read_text().replace("  wrong:", "  slow:"))
    plan = read_plan(plan_file)
    runs = [run for run in runs_in(plan) if run.variant == "slow"]
    before = signal.getsignal(signal.SIGTERM)
    child = os.fork()
    if not child:
        status = 1
        try:
            run_all(runs, launch(tmp_path, plan))
        except KeyboardInterrupt:
            status = 7
        finally:
            os._exit(status)
    ready = [tmp_path / run.name / "ready" for run in runs]
    wait_for(lambda: all(path.exists() for path in ready))
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert all((tmp_path / run.name / "stopped").exists() for run in runs)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(
    sys.platform != "linux", reason="the system tells a child of its parent's end on Linux alone"
)
def test_runs_of_a_killed_runner_save_and_end(plan_file: Path, tmp_path: Path) -> None:
    plan_file.write_text(plan_file.read_text().replace("  wrong:", "  slow:"))
    plan = read_plan(plan_file)
    (run,) = (run for run in runs_in(plan, (1,)) if run.variant == "slow")
    child = os.fork()
    if not child:
        run_all([run], launch(tmp_path, plan))
        os._exit(0)
    wait_for((tmp_path / run.name / "ready").exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for((tmp_path / run.name / "stopped").exists)


def wait_for(condition: Any, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_progress_is_read_from_the_end_of_the_metrics(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    telemetry = Telemetry(tmp_path, tensorboard=False, out=io.StringIO())
    for step in range(1, 4000):
        telemetry.step({"step": step, "loss": 1.0, "loss/mmlm": 2.0})
    telemetry.close()
    assert last_step(tmp_path) == 3999
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4000, "lo')  # being written
    assert last_step(tmp_path) == 3999


# ---- the table ---------------------------------------------------------------------------------------------


def record(
    folder: Path, run: Run, after: Mapping[str, float], before: Mapping[str, float] | None = None
) -> None:
    telemetry = Telemetry(folder / run.name, tensorboard=False, out=io.StringIO())
    if before is not None:
        telemetry.evaluation(0, before)
    for step in range(1, run.recipe.steps + 1):
        telemetry.step({"step": step, "step_seconds": 20.0 * run.seed})
    if after:
        telemetry.evaluation(run.recipe.steps, after)
    telemetry.close()


def figures(mmlm: float, camlm: float, retrieval: float) -> dict[str, float]:
    return {
        "retrieval/test/mean": retrieval, "retrieval/test/de-en": 0.9, "retrieval/test/mean_of_others": 0.1,
        "masked/mmlm/accuracy": mmlm, "masked/mmlm/loss": 3.0, "masked/mmlm/accuracy/de": 0.2,
        "masked/camlm/accuracy": camlm, "masked/camlm_control/accuracy": camlm / 2,
    }  # fmt: skip


@pytest.fixture
def recorded(plan_file: Path, tmp_path: Path) -> tuple[Plan, list[Run], Path]:
    plan = read_plan(plan_file)
    runs = runs_in(plan)
    folder = tmp_path / "runs"
    for run in runs:
        if run.variant == "mmlm":
            record(folder, run, figures(0.1 * run.seed, 0.2, 0.3), figures(0.0, 0.0, 0.05))
        elif run.variant == "camlm" and run.seed == 1:
            record(folder, run, {**figures(0.4, 0.5, 0.6), "masked/btmlm/accuracy": 0.25})
        elif run.variant == "camlm":
            record(folder, run, {})  # not evaluated yet
    for run in runs:
        record_run(folder, run.name, 90.0 * run.seed)
    record_command(folder, [run.name for run in runs], 400.0, 2, 4)
    return plan, runs, folder


def test_the_table_has_mean_and_spread_of_finished_runs(recorded: tuple[Plan, list[Run], Path]) -> None:
    table = table_of(*recorded)
    assert [row.title for row in table.rows] == [BEFORE, "MMLM", "+ CAMLM"]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(table).splitlines()]
    assert lines[0] == [
        "variant",
        "MMLM",
        "CAMLM",
        "CAMLM control",
        "BTMLM",
        "test",
        "minutes",
        "wall minutes",
        "seeds",
    ]
    assert lines[2] == [BEFORE, "0.0 ± 0.0", "0.0 ± 0.0", "0.0 ± 0.0", "-", "5.0 ± 0.0", "-", "-", "2"]
    # 10 and 20: mean 15, deviation of the sample 10 / sqrt(2)
    times = ["1.5 ± 0.7", "2.2 ± 1.1"]
    assert lines[3] == ["MMLM", "15.0 ± 7.1", "20.0 ± 0.0", "10.0 ± 0.0", "-", "30.0 ± 0.0", *times, "2"]
    assert lines[4] == ["+ CAMLM", "40.0", "50.0", "25.0", "25.0", "60.0", "1.0", "1.5", "1"]
    shown = plain(table).splitlines()
    assert (
        len({len(line) for line in shown}) == 1 and shown[2].startswith("MMLM") and "15.0 ± 7.1" in shown[2]
    )


def test_the_files_hold_every_value_and_the_plot_needs_no_colour(
    recorded: tuple[Plan, list[Run], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["__main__.py", "--preset", "quick"])
    table, out = table_of(*recorded), tmp_path / "deep" / "ablation"
    write_report(table, out, "quick", [1, 2], recorded[1][0].recipe)
    values = json.loads(Path(f"{out}.json").read_text())
    assert values["command"] == "python -m benchmarks.ablation --preset quick"
    assert values["variants"]["MMLM"]["seeds"] == [1, 2]
    assert values["variants"]["MMLM"]["figures"]["masked/mmlm/accuracy"] == [0.1, 0.2]
    assert values["variants"]["+ CAMLM"]["figures"]["masked/mmlm/accuracy/de"] == [0.2]
    assert values["clock"] == {"seconds": 400.0, "number": 1, "at_once": 2, "cores": 4}
    page = Path(f"{out}.md").read_text()
    assert "Wall clock of all runs together: 6:40 in one command, 2 run(s) at a time on 4 core(s)." in page
    assert markdown(table) in page and "](ablation.svg)" in page and values["command"] in page
    drawn = Path(f"{out}.svg").read_text()
    for text in (BEFORE, "MMLM", "+ CAMLM", "CAMLM control", "BTMLM", "test"):
        assert f">{text}<" in drawn, text
    colours = re.findall(r"(?:fill|stroke): ?#(..)(..)(..)\b", drawn)
    assert colours and all(red == green == blue for red, green, blue in colours)
    write_report(table, out, "quick", [1, 2], recorded[1][0].recipe)
    assert Path(f"{out}.svg").read_text() == drawn


def test_a_report_of_nothing_is_an_error(plan_file: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["--plan", str(plan_file), "--report", "--runs", str(tmp_path), "--out", str(out)]) == 1
    assert "no run of this plan with these settings is finished" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_a_small_ablation_end_to_end(plan_file: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "benchmarks.ablation", "--plan", str(plan_file), "--seeds", "1",
        "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "found"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done
    assert "3 variants x 1 seeds, 12,288 tokens each; 0 of 3 runs are finished" in done.stdout
    assert "1 of 3 runs failed" in done.stderr and "Traceback" not in done.stderr
    assert "holds no document of" in done.stderr
    values = json.loads((tmp_path / "found.json").read_text())["variants"]
    assert set(values) == {BEFORE, "MMLM", "+ CAMLM"}
    for name in ("masked/mmlm/accuracy", "masked/camlm_control/accuracy", "retrieval/test/mean"):
        assert all(len(values[row]["figures"][name]) == 1 for row in values)
    folders = sorted(path for path in (tmp_path / "runs" / "quick").iterdir() if path.is_dir())
    assert [set(read_evaluations(folder)) for folder in folders] == [{3}, {0, 3}, set()]
    again = subprocess.run([*command, "--only", "mmlm", "camlm"], capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "2 of 2 runs are finished" in again.stdout, again
