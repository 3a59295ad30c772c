"""The tables of a measurement, as text and as Markdown, and every value as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.step.contestants import CONTESTANTS
from benchmarks.step.goals import verdicts
from benchmarks.step.hugging_face import BATCH
from benchmarks.step.problem import Problem, Work
from benchmarks.step.rounds import Result
from benchmarks.step.worker import problem_of
from benchmarks.tables import markdown, seconds

_MIB: Final = 2**20

READING: Final = (
    "One step: forward, backward, clipping, AdamW; every row the same documents. tok/s: real tokens, padding is not "
    "counted; median over rounds in which all took turns. x: Calque in one process against the row, and share: of the "
    "speed of the step's matrix products alone (three for each linear layer and for the head, six for attention; of "
    "what is written beforehand one and two), medians over the rounds. MiB: highest resident memory during the "
    "step, weights, optimizer and libraries among it; of both ranks together where there are two; on a GPU the most "
    "that torch's allocator gave."
)
ROWS: Final = (
    "transformers: XLMRobertaForMaskedLM of the same shape, SDPA attention, batches of"
    f" {BATCH['cpu', 'demo']} documents ({BATCH['cpu', 'long']} of the long ones; on a GPU {BATCH['cuda', 'demo']} and"
    f" {BATCH['cuda', 'long']}) padded to their longest, gradients added up over the step, as by the Trainer"
    "; grouped: sorted by length over the whole step. Documents are those of the run's tasks (MMLM, TLM, CAMLM,"
    " BTMLM in equal parts); writing BTMLM's pseudo tokens, a forward of its own, is done by Calque alone and counts"
    " in its time. sentence-transformers: MultipleNegativesRankingLoss in both directions over mean pooling, one batch"
    " of the same pairs, each side padded to its longest. Tokenising and collating are outside of every step. DDP: the"
    " run's own model, losses and optimizer under torch's DistributedDataParallel."
)


class Measured(NamedTuple):
    """A problem, where it was measured, and what was found."""

    problem: Problem
    machine: str
    results: list[Result]


def table(measured: Measured) -> list[list[str]]:
    """Rows of cells, the head first."""
    rows = [["", "s", "tok/s", "x", "share", "MiB"]]
    there = {result.contestant: result for result in measured.results if result.seconds}
    one, products = there.get("one"), there.get("products")
    for result in measured.results:
        title = CONTESTANTS[result.contestant].title
        if not result.seconds:
            rows.append([title, f"- ({result.unavailable})", "", "", "", ""])
            continue
        rows.append(
            [
                title,
                seconds(statistics.median(result.seconds)),
                f"{result.tokens_per_second():,.0f}",
                f"{one.ratio(result):.2f}" if one else "-",
                f"{100 * result.ratio(products):.0f} %" if products else "-",
                f"{result.peak_bytes / _MIB:,.0f}" if result.peak_bytes else "-",
            ]
        )
    return rows


def parts_table(measured: Measured) -> list[list[str]]:
    """Rows of cells: what part of a step's time goes where, of those that were profiled; the largest first."""
    profiled = [result for result in measured.results if result.parts]
    sums = [sum(result.parts.values()) for result in profiled]
    names = {name: 0.0 for result in profiled for name in result.parts}
    for name in names:
        names[name] = max(
            result.parts.get(name, 0) / total for result, total in zip(profiled, sums, strict=True)
        )
    rows = [["part of a step's time", *(CONTESTANTS[result.contestant].title for result in profiled)]]
    for name in sorted(names, key=lambda name: -names[name]):
        cells = [
            f"{100 * one.parts.get(name, 0) / total:.1f} %" for one, total in zip(profiled, sums, strict=True)
        ]
        rows.append([name, *cells])
    return rows


def goals_table(measured: Sequence[Measured]) -> list[list[str]]:
    """Rows of cells: each goal at each problem it was measured at."""
    rows = [["goal", "at", "bound", "found", ""]]
    for one in measured:
        for verdict in verdicts(one.problem, one.results):
            goal = verdict.goal
            bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}"
            rows.append([goal.what, one.problem.title(), bound, f"{verdict.found:.2f}", verdict.words()])
    return rows


def work_line(measured: Measured) -> str:
    """What a step held."""
    work = next((result.work for result in measured.results if result.work), None)
    held = "" if work is None else f"{work.tokens:,} real tokens, {work.predictions:,} predictions; "
    apart = [CONTESTANTS[result.contestant].title for result in measured.results if result.beside]
    turns = (
        f" These took turns with Calque's process alone, for want of memory: {'; '.join(apart)}."
        if apart
        else ""
    )
    return f"On {measured.machine}; {held}{measured.problem.rounds} rounds.{turns}"


def write(out: Path, measured: Sequence[Measured], command: str, preset: str) -> None:
    """Write ``out`` with the endings .md and .json."""
    out.parent.mkdir(parents=True, exist_ok=True)
    page = [f"# What a training step costs, preset {preset}", f"Command: `{command}`", READING, ROWS]
    for one in measured:
        page += [f"## {one.problem.title()}", work_line(one), markdown(table(one))]
        if any(result.parts for result in one.results):
            page.append(markdown(parts_table(one)))
    page += ["## Goals", markdown(goals_table(measured))]
    out.with_name(f"{out.name}.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    values = {"preset": preset, "command": command, "measured": [_as_json(one) for one in measured]}
    out.with_name(f"{out.name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read(out: Path, preset: str) -> list[Measured]:
    """What an earlier command of the same preset wrote there; nothing if there is none."""
    path = out.with_name(f"{out.name}.json")
    if not path.exists():
        return []
    values = json.loads(path.read_text(encoding="utf-8"))
    return [_from_json(one) for one in values["measured"]] if values["preset"] == preset else []


def _as_json(one: Measured) -> dict[str, Any]:
    problem = {**one.problem._asdict(), "texts": one.problem.texts._asdict()}
    results = [
        {**result._asdict(), "work": result.work._asdict() if result.work else None} for result in one.results
    ]
    return {"problem": problem, "machine": one.machine, "results": results}


def _from_json(one: dict[str, Any]) -> Measured:
    results = [
        Result(
            **{
                **found,
                "seconds": tuple(found["seconds"]),
                "processor_seconds": tuple(found["processor_seconds"]),
                "beside": tuple(found.get("beside", ())),
                "work": Work(**found["work"]) if found["work"] else None,
            }
        )
        for found in one["results"]
    ]
    return Measured(problem_of(one["problem"]), one["machine"], results)
