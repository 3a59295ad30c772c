"""training.metrics and training.console: each step once, also after a kill; numbers survive exactly."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest
import torch

from training.console import CLEAR_LINE, Console, console_line, duration
from training.metrics import Telemetry, read_evaluations, read_events, read_metrics
from training.report_page import write_report

STEP = {
    "step": 120,
    "loss": 3.41234,
    "loss/mmlm": 6.2141,
    "loss/mmlm/de": 6.3,
    "loss/alignment": 0.84,
    "share/mmlm": 0.301,
    "budget/mmlm": 0.3,
    "share/alignment": 0.12,
    "budget/alignment": 0.2,
    "learning_rate": 5e-4,
    "grad_norm": 1.234,
    "tokens_per_second": 12345.6,
    "packing_efficiency": 0.985,
    "temperature": 0.05,
    "memory_gib": 1.53,
    "eta_seconds": 250.2,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def quiet(folder, **options) -> Telemetry:
    return Telemetry(folder, **{"tensorboard": False, "out": io.StringIO(), **options})


def test_console_line_shows_every_quantity_and_budgets_only_where_they_are_missed():
    line = console_line(STEP, 600)
    assert line == (
        "step 120/600  20.0%  eta  4:10 | loss  3.412 | mmlm  6.214 30.1% | alignment  0.840 12.0%/20.0%"
        " | lr 5.0e-04 | norm   1.23 | temp 0.050 |  12,346 tok/s | packed 98.5% | 1.5 GiB"
    )


def test_console_lines_of_different_steps_are_aligned():
    early = console_line({**STEP, "step": 5, "loss": 11.2, "tokens_per_second": 900, "eta_seconds": 9}, 600)
    late = console_line(STEP, 600)
    assert [i for i, c in enumerate(early) if c == "|"] == [i for i, c in enumerate(late) if c == "|"]


def test_console_line_needs_nothing_but_a_step():
    assert console_line({"step": 3}, 10) == "step  3/10  30.0%"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (250, "4:10"),
        (3850, "1:04:10"),
        (math.inf, "-"),
        (math.nan, "-"),
        (-1, "-"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_console_prints_the_first_every_nth_and_the_last_step_without_control_characters_when_plain():
    out = io.StringIO()
    console = Console(total_steps=11, log_every=5, out=out)
    for step in range(1, 12):
        console.step({"step": step})
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/11", "5/11", "10/11", "11/11"]
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_console_on_a_terminal_overwrites_the_live_line_and_messages_do_not_tear_it():
    out = Terminal()
    console = Console(total_steps=10, log_every=5, out=out)
    console.step({"step": 5})
    console.step({"step": 6})
    console.say("saved")
    assert out.getvalue().endswith(f"step  6/10  60.0%{CLEAR_LINE}saved\n")


def test_numbers_come_back_exactly_also_those_that_json_can_not_hold(tmp_path):
    telemetry = quiet(tmp_path)
    values = {"a": 0.1 + 0.2, "b": math.inf, "c": -math.inf, "d": np.float32(0.1), "e": torch.tensor(1.5)}
    telemetry.step({"step": 1, **values, "f": math.nan})
    telemetry.close()
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line.pop("f"))
    assert line == {"step": 1, **{name: float(value) for name, value in values.items()}}
    # strict JSON: no bare NaN that other readers refuse
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("resumed_at", [0, 1, 3, 5, 9])
def test_after_resuming_each_step_is_in_the_file_once(tmp_path, resumed_at):
    first = quiet(tmp_path)
    for step in range(1, 6):
        first.step({"step": step, "loss": float(step)})
    first.close()
    second = quiet(tmp_path, step=resumed_at)
    for step in range(resumed_at + 1, 11):
        second.step({"step": step, "loss": step * 10.0})
    second.close()
    lines = read_metrics(tmp_path)
    kept = min(resumed_at, 5)
    assert [line["step"] for line in lines] == [*range(1, kept + 1), *range(resumed_at + 1, 11)]
    assert [line["loss"] for line in lines if line["step"] <= resumed_at] == [
        float(s) for s in range(1, kept + 1)
    ]


def test_a_line_torn_by_a_kill_is_cut_and_the_next_run_goes_on(tmp_path):
    for name, line in (
        ("metrics.jsonl", {"step": 1, "loss": 2.0}),
        ("events.jsonl", {"event": "save", "step": 1}),
    ):
        (tmp_path / name).write_text(json.dumps(line) + "\n" + '{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    telemetry = quiet(tmp_path, step=2)
    telemetry.step({"step": 3})
    telemetry.event("resume", step=2)
    telemetry.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    assert [event["event"] for event in read_events(tmp_path)] == ["save", "resume"]


@pytest.mark.parametrize(
    "damaged", ['{"step": 2, "lo', "[]", "7", '{"loss": 1.0}', '{"step": 2, "loss": "x"}', "\x00\x00"]
)
def test_a_damaged_line_is_named_and_left_out_and_stays_where_it_is(tmp_path, capfd, damaged):
    lines = ['{"step": 1, "loss": 2.0}', damaged, '{"step": 3, "loss": 1.0}', ""]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "events.jsonl").write_text('{"event": "save", "step": 1}\n' + damaged + "\n")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3]
    assert [event["event"] for event in read_events(tmp_path)] == ["save"]
    said = capfd.readouterr().err
    assert (
        f"{tmp_path}/metrics.jsonl:2: this line is damaged" in said and f"{tmp_path}/events.jsonl:2" in said
    )
    write_report(tmp_path)
    quiet(tmp_path, step=2).close()
    if damaged != '{"step": 2, "loss": "x"}':
        assert damaged in (tmp_path / "metrics.jsonl").read_text()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_killed_process_has_written_every_step_it_finished(tmp_path):
    code = (
        "import os, signal, sys; from training.metrics import Telemetry\n"
        f"t = Telemetry({str(tmp_path)!r}, tensorboard=False)\n"
        "t.step({'step': 1}); t.event('save', step=1); t.step({'step': 2})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert [event["event"] for event in read_events(tmp_path)] == ["save"]


def test_events_carry_utc_time_and_their_details(tmp_path):
    telemetry = quiet(tmp_path)
    telemetry.event("save", step=5, folder=tmp_path / "checkpoints")
    telemetry.close()
    (event,) = read_events(tmp_path)
    assert datetime.fromisoformat(event.pop("time")).utcoffset().total_seconds() == 0
    assert event == {"event": "save", "step": 5, "folder": str(tmp_path / "checkpoints")}


def test_evaluations_after_the_step_of_a_resume_are_void_until_computed_again(tmp_path):
    telemetry = quiet(tmp_path)
    for step in (0, 10, 20):
        telemetry.evaluation(step, {"retrieval/test/mean": step / 100})
    telemetry.event("resume", step=10)
    assert list(read_evaluations(tmp_path)) == [0, 10]
    telemetry.evaluation(20, {"retrieval/test/mean": 0.9})
    telemetry.evaluation(20, {"masked_accuracy/de": 0.5})
    telemetry.close()
    assert read_evaluations(tmp_path)[20] == {"retrieval/test/mean": 0.9, "masked_accuracy/de": 0.5}


def test_other_ranks_write_nothing(tmp_path):
    out = io.StringIO()
    telemetry = Telemetry(tmp_path / "run", writes=False, out=out)
    telemetry.step({"step": 1})
    telemetry.evaluation(1, {"a": 1.0})
    telemetry.event("save")
    telemetry.say("hello")
    telemetry.close()
    assert not (tmp_path / "run").exists() and out.getvalue() == ""


def test_tensorboard_holds_the_same_numbers_and_hides_what_a_resume_computes_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = quiet(tmp_path, tensorboard=True)
    for step in range(1, 5):
        first.step({"step": step, "loss/mmlm": float(step)})
    first.close()
    second = quiet(tmp_path, tensorboard=True, step=2)
    second.step({"step": 3, "loss/mmlm": 30.0})
    second.evaluation(3, {"retrieval/test/mean": 0.5})
    second.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss/mmlm")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [(e.step, e.value) for e in board.Scalars("evaluation/retrieval/test/mean")] == [(3, 0.5)]
