"""The runs of an ablation: several at a time, surviving interruption and failure, timed."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation import runs as runner
from benchmarks.ablation.clock import commands_of, seconds_of
from benchmarks.ablation.plan import Plan, Run, read_plan
from benchmarks.ablation.runs import Launch, cores, last_step, results_of, run_all
from tests.benchmarks.small_plan import runs_in
from training.metrics import Telemetry

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
