"""The results of an ablation as one table: figures of every variant, mean and spread over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ablation.clock import Commands, commands_of, seconds_of
from benchmarks.ablation.plan import Plan, Run
from benchmarks.ablation.runs import results_of
from training.metrics import read_metrics

BEFORE = "before training"
_MASKED = {
    "masked/mmlm/accuracy": "MMLM",
    "masked/camlm/accuracy": "CAMLM",
    "masked/camlm_control/accuracy": "CAMLM control",
    "masked/btmlm/accuracy": "BTMLM",
}
MINUTES = "minutes"  # in training steps
WALL = "wall_minutes"  # from the start of the process to its end

TIMES = {MINUTES: "minutes", WALL: "wall minutes"}


class Row(NamedTuple):
    """A variant: title, and each figure's values over the seeds."""

    title: str
    values: dict[str, list[float]]  # name of the figure -> one value a seed that is finished
    seeds: list[int]


class Table(NamedTuple):
    """Rows in the order of the plan, and the figures that any of them has, with their heads."""

    rows: list[Row]
    heads: dict[str, str]
    clock: Commands | None = None


def table_of(plan: Plan, runs: Sequence[Run], folder: Path) -> Table:
    """What the finished ones of ``runs`` found. Figures are those after the last step; shares from 0 to 1."""
    before: dict[int, Mapping[str, float]] = {}
    rows = []
    wall = seconds_of(folder)
    for variant, settings in plan.variants.items():
        row = Row(settings.title, {}, [])
        for run in runs:
            found = results_of(folder, run) if run.variant == variant else None
            if found is None:
                continue
            if 0 in found:
                before.setdefault(run.seed, found[0])
            minutes = sum(step["step_seconds"] for step in read_metrics(folder / run.name)) / 60
            times = {MINUTES: minutes} | ({WALL: wall[run.name] / 60} if run.name in wall else {})
            _add(row, run.seed, {**found[run.recipe.steps], **times})
        if row.seeds:
            rows.append(row)
    if before:
        rows.insert(0, Row(BEFORE, {}, []))
        for seed, figures in before.items():
            _add(rows[0], seed, figures)
    return Table(rows, _heads(rows), commands_of(folder, [run.name for run in runs]))


def _add(row: Row, seed: int, figures: Mapping[str, float]) -> None:
    row.seeds.append(seed)
    for name, value in figures.items():
        row.values.setdefault(name, []).append(value)


def _heads(rows: Sequence[Row]) -> dict[str, str]:
    """The columns: masked tasks, the means of the retrieval sets, time."""
    present = list(dict.fromkeys(name for row in rows for name in row.values))
    sets = [name for name in present if name.startswith("retrieval/") and name.endswith("/mean")]
    heads = {name: head for name, head in _MASKED.items() if name in present}
    heads |= {name: name.split("/")[1] for name in sets}
    return heads | {name: head for name, head in TIMES.items() if name in present}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation of the sample over the seeds; nan for one of a single value."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), spread


def markdown(table: Table) -> str:
    """The table in Markdown; accuracies in percent."""
    lines = [
        "| variant | " + " | ".join(table.heads.values()) + " | seeds |",
        "|---|" + "---:|" * (len(table.heads) + 1),
    ]
    for row in table.rows:
        cells = [_cell(name, row.values.get(name, [])) for name in table.heads]
        lines.append(f"| {row.title} | " + " | ".join(cells) + f" | {len(row.seeds)} |")
    return "\n".join(lines) + "\n"


def plain(table: Table) -> str:
    """The same table for a terminal."""
    cells = [["", *table.heads.values()]]
    cells += [
        [row.title, *(_cell(name, row.values.get(name, [])) for name in table.heads)] for row in table.rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in cells
    )


def as_json(table: Table) -> dict[str, Any]:
    """Every value of every seed, of all figures that were measured."""
    return {row.title: {"seeds": row.seeds, "figures": row.values} for row in table.rows}


def _cell(name: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    scale = 1 if name in TIMES else 100
    mean, spread = mean_and_spread(values)
    return f"{scale * mean:.1f}" + ("" if math.isnan(spread) else f" ± {scale * spread:.1f}")
