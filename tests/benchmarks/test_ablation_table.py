"""The results of an ablation: a table, a plot and files that say what was measured."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation.__main__ import main
from benchmarks.ablation.clock import record_command, record_run
from benchmarks.ablation.plan import Plan, Run, read_plan
from benchmarks.ablation.report import write_report
from benchmarks.ablation.table import BEFORE, markdown, plain, table_of
from tests.benchmarks.small_plan import runs_in
from training.metrics import Telemetry, read_evaluations


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
