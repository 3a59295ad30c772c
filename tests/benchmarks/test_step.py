"""The benchmark of the training step: every contestant gets the same documents, and tables say what was found."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.step import __main__ as command
from benchmarks.step import guard
from benchmarks.step.documents import Read, by_length, in_turn, padded
from benchmarks.step.goals import GOALS, verdicts
from benchmarks.step.problem import PRESETS, XLM_R, Problem, Work
from benchmarks.step.products import products_of, products_within
from benchmarks.step.profile import OTHER, PYTHON, parts_of
from benchmarks.step.report import Measured, goals_table, parts_table, read, table, work_line, write
from benchmarks.step.rounds import Result, passes_of, steps_of
from benchmarks.step.run import recipe_of
from benchmarks.step.texts import joined_rows, joined_sentences
from benchmarks.tables import markdown, plain

DOCUMENTS = [Read(np.arange(n) + 10, np.where(np.arange(n) % 7, -100, 5)) for n in (9, 3, 40, 4, 8, 39, 2)]


@pytest.mark.parametrize("order", [in_turn, by_length])
def test_padded_batches_hold_every_document_once_and_its_labels(order) -> None:
    batches = [padded(batch) for batch in order(DOCUMENTS, 2)]
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 2, 1]
    found = []
    for batch in batches:
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]  # the longest of the batch
        for ids, mask, labels in zip(
            *(batch[name] for name in ("input_ids", "attention_mask", "labels")), strict=True
        ):
            assert (labels[mask == 0] == -100).all() and (ids[mask == 0] == 1).all()
            found.append((ids[mask == 1].tolist(), labels[mask == 1].tolist()))
    assert sorted(found) == sorted((d.ids.tolist(), d.labels.tolist()) for d in DOCUMENTS)


def test_batches_by_length_hold_no_more_padding_than_any_others() -> None:
    def cells(batches: list[list[Read]]) -> int:
        return sum(padded(batch)["input_ids"].numel() for batch in batches)

    assert cells(by_length(DOCUMENTS, 2)) == 2 * (40 + 9 + 4) + 2 < cells(in_turn(DOCUMENTS, 2))


def test_joined_texts_are_the_given_ones_in_order_and_long_enough() -> None:
    texts = [f"{'wort ' * (7 + n % 19)}{n}" for n in range(400)]
    lines = [{"lang": "de" if n % 3 else "fr", "text": text} for n, text in enumerate(texts)]

    def count(text: str) -> int:
        return len(text.split())

    joined = list(joined_sentences(lines, count))
    assert all(128 <= count(line["text"]) < 512 for line in joined)
    for language in ("de", "fr"):
        whole = " ".join(line["text"] for line in lines if line["lang"] == language)
        assert whole.startswith(" ".join(line["text"] for line in joined if line["lang"] == language))
    rows = [
        {"t": {"en": text, "de": f"D{text}"} | ({"fr": text} if n % 40 else {})}
        for n, text in enumerate(texts)
    ]
    joined = list(joined_rows(rows, count))
    assert all(128 <= count(row["t"]["en"]) < 512 for row in joined)
    assert any("fr" in row["t"] for row in joined) and not all("fr" in row["t"] for row in joined)
    assert " ".join(texts).startswith(" ".join(row["t"]["en"] for row in joined))


def test_the_products_are_those_of_the_model() -> None:
    from model.pretraining import PretrainingModel

    problem = Problem(layers=3, width=12, heads=2, feed_forward=20, vocabulary=31)
    with torch.device("meta"):
        model = PretrainingModel(recipe_of(problem, 1).model.encoder(31))
    weights = {
        name: parameter.numel() for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and name not in ("encoder.embedding.position.weight",)
    }  # fmt: skip
    # The head, and in the last layer what stands behind attention, see only what is predicted.
    few = sum(
        size for name, size in weights.items()
        if name.startswith("head.") or "word" in name or ("layers.2" in name and "projection" not in name)
    )  # fmt: skip
    expected = 6 * (100 * (sum(weights.values()) - few) + 7 * few)
    assert sum(product.operations for product in products_of(problem, Work(100, 7))) == expected
    written = 2 * (40 * (sum(weights.values()) - few) + 5 * few)  # in a forward of its own
    assert sum(each.operations for each in products_of(problem, Work(100, 7, 40, 5))) == expected + written


def test_the_products_within_documents_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from model.attention import attention
    from model.layout import make_layout

    problem = Problem(layers=3, width=12, heads=2)
    lengths, written = [7, 200, 5, 7, 60, 59, 1], [20, 9]

    def counted(lengths: list[int], learned: bool) -> int:
        starts = torch.tensor([0, *lengths]).cumsum(0)
        ids = torch.zeros(sum(lengths), dtype=torch.int64)
        layout = make_layout(ids, starts, starts.diff(), pad_id=-1, dtype=torch.float32)
        projected = torch.randn(len(layout.order), 3, 2, 6, requires_grad=learned)
        with FlopCounterMode(display=False) as counter:
            outputs = attention(projected, layout)
            if learned:
                outputs.sum().backward()
        return counter.get_total_flops()

    found = products_within(problem, lengths, written)
    assert sum(each.operations for each in found) == 3 * (counted(lengths, True) + counted(written, False))
    assert sum(each.documents for each in found) == len(lengths) + len(written)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_recipes_that_can_run_and_full_meets_every_goal_somewhere(preset: str) -> None:
    for problem in PRESETS[preset]:
        for ranks in (1, 2):
            assert recipe_of(problem, ranks).batch.step_tokens == problem.tokens
    if preset == "full":
        names = {name for problem in PRESETS[preset] for name in problem.contestants}
        assert len(names) == 8 and any(problem.vocabulary == XLM_R for problem in PRESETS[preset])


# ---- goals and tables --------------------------------------------------------------------------------------

WORK = Work(1000, 150)
LARGE = Problem(vocabulary=XLM_R, contestants=("one", "zero3", "ddp", "padded", "products"))
FOUND = [
    Result("one", (1.0, 2.0, 1.0), (2.0,) * 3, 400, WORK),
    Result("zero3", (2.0, 2.0, 2.0), (2.0,) * 3, 900, WORK),
    Result("ddp", (1.0, 1.8, 2.0), (2.0,) * 3, 900, WORK),
    Result("padded", (4.0, 10.0, 6.0), (2.0,) * 3, 1000, WORK),
    Result("products", unavailable="failed: why"),
]


def test_a_goal_is_met_or_missed_by_the_median_of_the_rounds() -> None:
    found = {
        verdict.goal.what: (round(verdict.found, 3), verdict.words()) for verdict in verdicts(LARGE, FOUND)
    }
    assert found == {
        "speed against padded batches": (5.0, "met"),
        "ZeRO-3 against plain data parallelism": (0.9, "met"),
        "memory against padded batches": (0.4, "met"),
    }
    slower = [FOUND[0]._replace(seconds=(2.0, 2.1, 2.0), peak_bytes=600), *FOUND[1:]]
    assert [verdict.words() for verdict in verdicts(LARGE, slower)] == ["missed", "met", "missed"]
    in_rounds_of_its_own = FOUND[3]._replace(beside=(2.0, 4.0, 1.0))
    apart = [*FOUND[:3], in_rounds_of_its_own, FOUND[4]]
    assert "alone, for want of memory: transformers, padded batches." in work_line(
        Measured(LARGE, "a machine", apart)
    )
    assert "want of memory" not in work_line(Measured(LARGE, "a machine", FOUND))
    assert [round(verdict.found, 3) for verdict in verdicts(LARGE, apart)] == [2.5, 0.9, 0.4]
    small = {verdict.goal.what for verdict in verdicts(LARGE._replace(vocabulary=100), FOUND)}
    assert small == set(found) - {"memory against padded batches"} and len(GOALS) == 6


def test_what_wants_much_memory_takes_turns_with_one_process_alone() -> None:
    assert passes_of(LARGE) == [LARGE.contestants] and steps_of(LARGE) == 1 + 5 * 4
    apart = LARGE._replace(apart=("padded", "grouped"))
    assert passes_of(apart) == [("one", "zero3", "ddp", "products"), ("one", "padded")]
    assert steps_of(apart) == 1 + 6 * 4
    assert passes_of(apart._replace(contestants=("padded",))) == [("padded",)]


def test_tables_say_what_was_found_and_files_keep_it(tmp_path: Path) -> None:
    measured = Measured(LARGE, "a machine", FOUND)
    rows = table(measured)
    assert rows[4][:4] == ["transformers, padded batches", "6.000", "167", "5.00"]
    assert rows[5][1] == "- (failed: why)" and {len(row) for row in rows} == {len(rows[0])}
    write(tmp_path / "step", [measured], "a command", "quick")
    assert read(tmp_path / "step", "quick") == [measured] and read(tmp_path / "step", "full") == []
    page = (tmp_path / "step.md").read_text()
    assert markdown(rows) in page and markdown(goals_table([measured])) in page
    assert "padded batches" in plain(rows)


def test_ranges_of_the_presets_do_not_repeat_a_problem() -> None:
    for problems in PRESETS.values():
        titles = sorted(problem.title() for problem in problems)
        assert all(a != b for a, b in pairwise(titles))


# ---- the profile -------------------------------------------------------------------------------------------


class Event:
    def __init__(self, name: str, self_seconds: float, parent: Event | None = None) -> None:
        self.name, self.self_cpu_time_total, self.cpu_parent = name, 1e6 * self_seconds, parent


def test_an_operation_belongs_to_the_innermost_part_that_called_it() -> None:
    attention = Event("_ShortDocumentsBackward", 1)
    head = Event("autograd::engine::evaluate_function: X", 1)
    events = [
        attention, Event("aten::bmm", 2, attention), Event("aten::mm", 4, Event("aten::linear", 0)),
        Event("aten::copy_", 8, head), Event("aten::copy_", 16, Event("c10d::allreduce_", 0, attention)),
    ]  # fmt: skip
    assert parts_of(events, 40) == {
        "communication": 16, PYTHON: 9, OTHER: 8, "linear layers": 4, "attention": 3,
    }  # fmt: skip
    rows = parts_table(
        Measured(LARGE, "a machine", [FOUND[0]._replace(parts=parts_of(events, 40)), FOUND[1]])
    )
    assert rows[1] == ["communication", "40.0 %"] and [len(row) for row in rows] == [2] * 6


def test_the_profiler_finds_the_parts_that_it_is_asked_for() -> None:
    from torch.profiler import ProfilerActivity, profile

    layer = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.GELU())
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        layer(torch.ones(8, 64)).sum().backward()
        optimizer.step()
    parts = parts_of(seen.events(), 1e9)
    assert {"linear layers", "norms", "GELU", "optimizer and norm of the gradient"} <= parts.keys()


# ---- the guard ---------------------------------------------------------------------------------------------


def test_a_ratio_a_quarter_below_the_table_is_a_regression_and_a_better_one_is_none() -> None:
    table = {"a": 2.0, "b": 1.0, "c": 0.5}
    assert guard.regressions({"a": 1.51, "b": 9.0, "c": 0.38}, table) == []
    assert guard.regressions({"a": 1.49, "b": 0.76, "c": 0.3}, table) == ["a", "c"]


def test_the_guard_measures_once_more_before_it_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = iter([{"a": 9.0}, {"a": 2.0}, {"a": 1.0}, {"a": 1.9}, {"a": 1.0}, {"a": 1.2}])
    monkeypatch.setattr(guard, "TABLE", tmp_path / "guard.json")
    monkeypatch.setattr(guard, "measured", lambda: next(runs))
    guard.TABLE.write_text('{"another kind": {"a": 8.0}}')
    assert guard.main([]) == 0 and "nothing compared" in capsys.readouterr().out
    assert guard.main(["--update"]) == 0
    assert len(json.loads(guard.TABLE.read_text())) == 2
    assert guard.main([]) == 0 and "measured once more" in capsys.readouterr().out
    assert guard.main([]) == 1 and "SLOWER" in capsys.readouterr().out


def test_the_table_of_the_guard_has_every_pair_and_the_small_preset_measures_it() -> None:
    found: dict[str, float] = {}
    for problem in PRESETS["small"]:
        kind = "alignment" if problem.aligns else "masked"
        results = {
            name: Result(name, (1.0,), (1.0,), 1, Work(10 * (number + 1), 1))
            for number, name in enumerate(problem.contestants)
        }
        found |= guard.ratios(kind, results)
    tables = json.loads(guard.TABLE.read_text())
    assert all(found.keys() == table.keys() for table in tables.values())
    assert found["masked: one against padded"] == pytest.approx(1 / 4)


def test_a_gpu_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert command.main(["--preset", "gpu"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_goals_are_said_of_the_cpu_alone() -> None:
    assert verdicts(LARGE, FOUND) and not verdicts(LARGE._replace(device="cuda"), FOUND)
