"""The benchmark of the losses: contestants compute one number, memory is what a run took, tables say what was found."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import __main__ as command
from benchmarks.kernels.arithmetic import lines
from benchmarks.kernels.goals import GOALS, verdicts
from benchmarks.kernels.problem import PRESETS, Outcome, Problem
from benchmarks.kernels.report import Measured, goals_table, read, table, write
from benchmarks.kernels.rounds import Result, measure_all, steps_of
from benchmarks.kernels.worker import errors, measure
from benchmarks.tables import markdown, plain
from benchmarks.turns.process import Unavailable

SMALL = {
    "alignment": {"pairs": 24, "width": 16},
    "margin": {"rows": 12, "negatives": 3, "width": 8},
    "vocabulary": {"rows": 9, "width": 8, "ids": 41},
}
CONTESTANTS = [
    (operation, name)
    for operation in SMALL
    for name in importlib.import_module(f"benchmarks.kernels.{operation}").CONTESTANTS
]

SLOW_TO_START = ("compiled", "sentence_transformers", "sentence_transformers_cached")


def problem(operation: str, *contestants: str, rounds: int = 1, dtype: str = "float32") -> Problem:
    return Problem(operation, SMALL[operation], contestants, rounds, dtype)


# ---- contestants -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        pytest.param(*which, marks=[pytest.mark.slow] if which[1] in SLOW_TO_START else [])
        for which in CONTESTANTS
    ],
)
def test_every_contestant_computes_the_loss_and_the_gradients_of_the_definition(
    operation: str, name: str
) -> None:
    module = importlib.import_module(f"benchmarks.kernels.{operation}")
    inputs = module.make(problem(operation))
    try:
        outcome = module.CONTESTANTS[name][1](inputs)()
    except Unavailable as reason:
        assert name in ("native", "triton", "cuda", "liger", "cut_cross_entropy") and str(reason)
        return
    assert [gradient.shape for gradient in outcome.gradients] == [
        side.shape for side in inputs if side.requires_grad
    ]
    if name == "products":
        assert outcome.loss is None
        return
    off = errors(outcome, module.truth(inputs))
    assert off["loss_error"] < 1e-5 and off["gradient_error"] < 1e-5, off


def test_the_four_products_are_those_of_the_loss_also_where_tiles_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks.kernels import alignment

    monkeypatch.setattr(alignment, "_PRODUCT_TILE", 10)
    inputs = alignment.make(problem("alignment"))
    similarities = inputs.queries @ inputs.keys.T
    of_queries, of_keys = alignment.products(inputs)().gradients
    torch.testing.assert_close(of_queries, similarities @ inputs.keys)
    torch.testing.assert_close(of_keys, similarities.T @ inputs.queries)


def test_an_error_is_seen() -> None:
    true = Outcome(torch.tensor(2.0).double(), (torch.ones(2).double(), torch.zeros(3).double()))
    off = Outcome(torch.tensor(2.2), (torch.tensor([1.0, 1.5]), torch.zeros(3)))
    assert errors(off, true) == pytest.approx({"loss_error": 0.1, "gradient_error": 0.5 / 2**0.5}, rel=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_contestants_that_are_there_and_full_has_every_goal(preset: str) -> None:
    for one in PRESETS[preset]:
        module = importlib.import_module(f"benchmarks.kernels.{one.operation}")
        assert set(one.contestants) <= set(module.CONTESTANTS)
    if preset == "full":
        sizes = [(one.operation, one.size) for one in PRESETS[preset]]
        assert all((goal.operation, goal.size) in sizes for goal in GOALS)


# ---- measuring ---------------------------------------------------------------------------------------------


def test_the_extra_memory_is_the_peak_of_a_run_and_what_it_returns() -> None:
    mib = 2**20

    def run() -> Outcome:
        torch.ones(64 * mib // 4)  # freed before the end, yet it was there
        return Outcome(torch.zeros(()), (torch.ones(16 * mib // 4),))

    answer = measure(run, "cpu")
    assert answer["gradient_bytes"] == [16 * mib]
    assert answer["extra_bytes"] == pytest.approx(64 * mib, abs=8 * mib)
    assert answer["seconds"] > 0 and answer["processor_seconds"] > 0


def test_contestants_take_turns_in_processes_of_their_own() -> None:
    steps: list[str] = []
    given = problem("margin", "gather", "nobody", rounds=2)
    gather, nobody = measure_all(given, 1, steps.append)
    assert [step.partition(":")[0] for step in steps] == [
        "gather", "nobody", "gather, round 1", "nobody, round 1", "gather, round 2", "nobody, round 2"
    ]  # fmt: skip
    assert len(steps) == steps_of(given)
    assert len(gather.seconds) == 2 and gather.loss_error is not None and gather.loss_error < 1e-5
    assert gather.gradient_bytes == (12 * 8 * 4, 12 * 8 * 4, 24 * 8 * 4)
    assert nobody.unavailable == "failed: KeyError: 'nobody'" and not nobody.seconds


# ---- goals and tables --------------------------------------------------------------------------------------

FOUND = [
    Result("products", [2.0, 4.0, 2.0], [2.0] * 3, 900 * 2**20, (400 * 2**20, 400 * 2**20)),
    Result("streaming", [2.4, 4.4, 3.0], [2.0] * 3, 1000 * 2**20, (400 * 2**20, 400 * 2**20), 2e-7, 3e-6),
    Result("triton", unavailable="needs a GPU"),
]
LARGE = Problem("alignment", {"pairs": 131_072, "width": 768}, ("products", "streaming", "triton"), 3)


def test_a_goal_is_met_or_missed_by_what_was_found_at_its_size() -> None:
    by_name = {verdict.goal.what: verdict for verdict in verdicts([(LARGE, FOUND)])}
    memory, time, *others = by_name.values()
    assert memory.found == 1000 and memory.words() == "met"
    assert time.found == pytest.approx(1.2) and time.words() == "met"  # the median of 1.2, 1.1 and 1.5
    assert {verdict.words() for verdict in others} == {"not measured here"}
    slower = [FOUND[0], FOUND[1]._replace(seconds=[3.0, 6.0, 3.0], extra_bytes=1100 * 2**20)]
    assert [verdict.words() for verdict in verdicts([(LARGE, slower)])][:2] == ["missed", "missed"]
    for other in (LARGE._replace(size=SMALL["alignment"]), LARGE._replace(dtype="bfloat16")):
        assert {verdict.words() for verdict in verdicts([(other, FOUND)])} == {"not measured here"}


def test_the_goal_of_the_head_leaves_the_tables_gradient_out() -> None:
    size = {"rows": 8192, "width": 768, "ids": 250_002}
    head = Problem("vocabulary", size, ("streaming",), 1)
    found = Result("streaming", [1.0], [1.0], 1000 * 2**20, (24 * 2**20, 800 * 2**20, 2**20))
    assert [v.found for v in verdicts([(head, [found])]) if v.goal.unit == "MiB"] == [None, 200]


def test_tables_say_what_was_found_and_why_a_row_is_empty() -> None:
    titles = {"products": "products alone", "streaming": "ours, streaming", "triton": "ours, triton"}
    measured = Measured(LARGE, "a machine", FOUND, titles)
    rows = table(measured)
    assert rows[2] == ["ours, streaming", "3.000", "1.20", "1,000", "200", "2e-07", "3e-06"]
    assert rows[3][1] == "- (needs a GPU)"
    for text in (plain(rows), markdown(rows), plain(goals_table([measured]))):
        assert "ours, streaming" in text or "met" in text
    assert {len(row) for row in rows} == {len(rows[0])}


def test_a_memory_bound_loss_is_called_so_and_streaming_never_asks_for_more_bytes() -> None:
    found = {line.what: line for line in lines()}
    for what, line in found.items():
        assert line.bound == ("products" if "streaming" in what else "memory"), what
    dense = [line for what, line in found.items() if "dense" in what]
    streaming = [line for what, line in found.items() if "streaming" in what]
    assert all(s.bytes < d.bytes for s, d in zip(streaming, dense, strict=True))
    assert found["alignment 8,192 x 768, streaming"].operations == 4 * 2 * 8192**2 * 768


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_measures_writes_and_keeps_what_it_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kernels"
    write(out, [Measured(LARGE, "a machine", FOUND, {})], "an earlier command", "quick")
    monkeypatch.setitem(PRESETS, "quick", (problem("margin", "gather", "streaming"),))
    assert command.main(["--op", "margin", "--only", "gather", "--threads", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "gather + einsum" in printed and "arithmetic, not measured" in printed
    kept = read(out, "quick")
    assert [one.problem.operation for one in kept] == ["alignment", "margin"]
    assert kept[0].results == FOUND and kept[1].problem.contestants == ("gather",)
    assert "## margin: 12 rows x 3 negatives x 8 width, float32" in out.with_suffix(".md").read_text()
    assert json.loads(out.with_suffix(".json").read_text())["preset"] == "quick"
    assert read(out, "full") == []


def test_a_device_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert command.main(["--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
