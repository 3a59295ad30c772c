"""The tables of a measurement, as text and as Markdown, and every value as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.kernels import arithmetic
from benchmarks.kernels.goals import verdicts
from benchmarks.kernels.problem import Problem
from benchmarks.kernels.rounds import Result
from benchmarks.tables import markdown, seconds

_MIB: Final = 2**20
_BASES: Final = (
    "products",
    "gather",
    "dense",
    "open_clip",
)  # what times are compared with, the first that is there

READING: Final = (
    "Forward and backward. time: median of the rounds, in which all took turns; x: against the row marked 1.00, median"
    " over the rounds. extra: highest resident memory of the process (on a GPU: the most that torch's allocator gave)"
    " less what it held before the run, in MiB, the gradients of the inputs among it; beyond: without these. errors:"
    " of the loss, and of the worst gradient by its norm, against the definition in float64 from the same inputs, on a"
    " smaller problem of the same kind."
)


class Measured(NamedTuple):
    """A problem, where it was measured, and what was found."""

    problem: Problem
    machine: str
    results: list[Result]
    titles: dict[str, str]


def table(measured: Measured) -> list[list[str]]:
    """Rows of cells, the head first."""
    rows = [["", "time, s", "x", "extra", "beyond", "loss error", "gradient error"]]
    there = {result.contestant: result for result in measured.results if result.seconds}
    base = next((there[name] for name in _BASES if name in there), None)
    for result in measured.results:
        title = measured.titles.get(result.contestant, result.contestant)
        if not result.seconds:
            rows.append([title, f"- ({result.unavailable})", "", "", "", "", ""])
            continue
        beyond = None if result.extra_bytes is None else result.extra_bytes - sum(result.gradient_bytes)
        ratio = "" if base is None else f"{result.ratio(base):.2f}"
        rows.append(
            [title, seconds(result.median()), ratio, _mib(result.extra_bytes), _mib(beyond),
             _error(result.loss_error), _error(result.gradient_error)]
        )  # fmt: skip
    return rows


def goals_table(measured: Sequence[Measured]) -> list[list[str]]:
    """Rows of cells: each goal, what was found, and whether it is met."""
    rows = [["goal, float32 on a CPU", "size", "at most", "found", ""]]
    for verdict in verdicts([(one.problem, one.results) for one in measured]):
        goal = verdict.goal
        size = " x ".join(f"{count:,}" for count in goal.size.values())
        found = "-" if verdict.found is None else f"{verdict.found:.4g} {goal.unit}"
        rows.append([goal.what, size, f"{goal.most:g} {goal.unit}", found, verdict.words()])
    return rows


def arithmetic_table() -> list[list[str]]:
    """Rows of cells: what an H100 would need at least."""
    rows = [["arithmetic, not measured", "TFLOP", "GB", "FLOP/B", "bound by", "at least, ms"]]
    for line in arithmetic.lines():
        rows.append(
            [line.what, f"{line.operations / 1e12:.3g}", f"{line.bytes / 1e9:.3g}", f"{line.intensity:.3g}",
             line.bound, f"{line.milliseconds:.3g}"]
        )  # fmt: skip
    return rows


def write(out: Path, measured: Sequence[Measured], command: str, preset: str) -> None:
    """Write ``out`` with the endings .md and .json."""
    out.parent.mkdir(parents=True, exist_ok=True)
    page = [f"# Cost and error of the losses, preset {preset}", f"Command: `{command}`", READING]
    for one in measured:
        page += [
            f"## {one.problem.title()}",
            f"On {one.machine}; {one.problem.rounds} rounds.",
            markdown(table(one)),
        ]
    page += ["## Goals", markdown(goals_table(measured)), "## What an H100 would need at least"]
    page += [" ".join((arithmetic.__doc__ or "").split("\n\n", 1)[1].split()), markdown(arithmetic_table())]
    out.with_name(f"{out.name}.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    values = {
        "preset": preset,
        "command": command,
        "measured": [
            {
                "problem": one.problem._asdict(),
                "machine": one.machine,
                "titles": one.titles,
                "results": [result._asdict() for result in one.results],
            }
            for one in measured
        ],
    }
    out.with_name(f"{out.name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read(out: Path, preset: str) -> list[Measured]:
    """What an earlier command of the same preset wrote there; nothing if there is none."""
    path = out.with_name(f"{out.name}.json")
    if not path.exists():
        return []
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if values["preset"] != preset:
        return []
    return [
        Measured(
            Problem(**{**one["problem"], "contestants": tuple(one["problem"]["contestants"])}),
            one["machine"],
            [
                Result(**{**found, "gradient_bytes": tuple(found["gradient_bytes"])})
                for found in one["results"]
            ],
            one["titles"],
        )
        for one in values["measured"]
    ]


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / _MIB:,.0f}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"
