"""The files of the benchmark: tables in Markdown, all values as JSON, the plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth.fit import Host, foretold, line_through
from benchmarks.growth.measure import Measured
from benchmarks.growth.points import BASE, CALIBRATION, SERIES, Point, size_of
from benchmarks.tables import markdown
from training.cost import Machine

GOAL = 0.2  # the model's largest error, of what was measured


class Growth(NamedTuple):
    """Everything that was found."""

    measured: Sequence[Measured]
    machine: Machine
    host: Host
    where: str
    clusters: Sequence[str]  # lines, by arithmetic

    def of(self, point: Point) -> Measured:
        """The measurement of a point."""
        return next(each for each in self.measured if each.point == point)

    def error(self, each: Measured) -> float:
        """Of the model, as a part of what was measured."""
        return foretold(each, self.machine, self.host) / each.seconds - 1

    def foretold(self) -> list[Measured]:
        """The points that no rate was taken from."""
        return [each for each in self.measured if each.point not in CALIBRATION]


def write(growth: Growth, out: Path, command: str) -> str:
    """Write ``out`` with the endings .md, .json and .svg; returns the text of the first."""
    from benchmarks.growth.figure import plot

    text = "\n".join(_page(growth, command)) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    out.with_suffix(".json").write_text(json.dumps(_values(growth), indent=1) + "\n", encoding="utf-8")
    plot(growth, out.with_suffix(".svg"))
    return text


def _page(growth: Growth, command: str) -> Iterator[str]:
    base = BASE.problem
    yield "# How a step grows\n"
    yield f"Command: `{command}`, on {growth.where}.\n"
    yield (
        f"A step of MMLM, TLM and CAMLM on the demo's text in float32, ZeRO-3, one thread a rank; where a table does"
        f" not say otherwise one rank, {base.layers} layers x {base.width}, feed-forward {base.feed_forward},"
        f" {base.vocabulary:,} ids, {base.tokens:,} tokens a step. s: the fastest round's, of its"
        " slowest rank (what others do on a shared machine only adds). attention: its part of the operations. MiB:"
        " by how much all ranks together grew when the step was built and run, weights and optimizer among it;"
        " arithmetic: what `--dry-run` says of it without ZeRO's bucket, which stays almost empty here. model: the cost"
        " model, whose rates come from the points with a *."
    )
    for title, points in SERIES.items():
        yield f"\n## {title}\n"
        yield markdown(list(_rows(growth, title, points)))
        yield from _slopes(growth, title, points)
    yield "\n## The cost model\n"
    yield from _model(growth)
    yield "\n## On clusters of GPUs, by arithmetic\n"
    yield "Not measured: operations, bytes and messages of `recipes/base.yaml` at the rates of data sheets"
    yield "(training/cost.py; `python pretrain.py --dry-run --world N` prints the same of any recipe).\n"
    yield "```"
    yield from growth.clusters
    yield "```"


def _rows(growth: Growth, title: str, points: Sequence[Point]) -> Iterator[list[str]]:
    yield [title, "s", "model", "error", "attention", "tokens/s", "MiB", "arithmetic"]
    for point in points:
        each = growth.of(point)
        work = each.work
        yield [
            f"{size_of(title, point):,}{' *' if point in CALIBRATION else ''}",
            f"{each.seconds:.3f}",
            f"{foretold(each, growth.machine, growth.host):.3f}",
            f"{100 * growth.error(each):+.0f} %",
            f"{100 * work.attention / work.operations:.1f} %",
            f"{each.contents.tokens * point.ranks / each.seconds:,.0f}",
            f"{each.grown_bytes / 2**20:,.0f}",
            f"{each.planned_bytes / 2**20:,.0f}",
        ]


def _slopes(growth: Growth, title: str, points: Sequence[Point]) -> Iterator[str]:
    if title == "ranks":  # a curve
        return
    found = [growth.of(point) for point in points]
    sizes = [float(size_of(title, point)) for point in points]
    if title == "tokens of a document, at most":  # what a token attends to, not the bound
        sizes = [each.contents.squares / each.contents.tokens for each in found]
        title = "token that a token sees on average"
    of_time = line_through(sizes, [each.seconds for each in found])
    of_memory = line_through(sizes, [float(each.grown_bytes) for each in found])
    yield (
        f"\nTime: {of_time.intercept:.3f} s and {1e6 * of_time.slope:,.1f} µs for each of them"
        f" (R² {of_time.explained:.4f}). Memory: {of_memory.intercept / 2**20:,.0f} MiB and"
        f" {of_memory.slope / 2**10:,.1f} KiB for each (R² {of_memory.explained:.4f})."
        + (" Them: tokens that a token sees on average." if "sees" in title else "")
    )


def _model(growth: Growth) -> Iterator[str]:
    machine = growth.machine
    yield markdown(
        [
            ["rate of a core", "found"],
            ["products in the layers", _giga(machine.layers, "GFLOP/s")],
            ["products with the token table", _giga(machine.head, "GFLOP/s")],
            ["attention", _giga(machine.attention, "GFLOP/s")],
            ["memory", _giga(machine.memory, "GB/s")],
            ["an operation's start", f"{1e6 * machine.call:.1f} µs"],
            ["messages between ranks", _giga(machine.network, "GB/s")],
        ]
    )
    yield (
        "\nA core is slower while the others work, for caches and memory are shared, or two are threads of one core:"
        f" what ranks compute takes {growth.host.together:.2f} times as long when each of the {growth.host.cores} cores"
        " has one. That and the rate of messages are taken from two steps of two ranks, which the tables do not show."
        " Messages are copies by the cores here, so ranks that are more than cores take turns with them too."
    )
    errors = sorted(abs(growth.error(each)) for each in growth.foretold())
    missed = sum(error > GOAL for error in errors)
    yield (
        f"\nOf the {len(errors)} points that no rate was taken from the model is off by {100 * errors[-1]:.0f} %"
        f" at most and {100 * errors[len(errors) // 2]:.0f} % in the median; {missed} of them by more than"
        f" {100 * GOAL:.0f} %."
    )


def _giga(rate: float, unit: str) -> str:
    return f"{rate / 1e9:,.2f} {unit}" if rate < 1e15 else "too small to be seen"


def _values(growth: Growth) -> dict[str, Any]:
    return {
        "where": growth.where,
        "together": growth.host.together,
        "machine": {
            name: (value if value < 1e15 else None) for name, value in growth.machine._asdict().items()
        },
        "points": [
            {
                "tokens": each.point.problem.tokens,
                "longest": each.point.problem.texts.longest,
                "vocabulary": each.point.problem.vocabulary,
                "layers": each.point.problem.layers,
                "ranks": each.point.ranks,
                "calibration": each.point in CALIBRATION,
                "seconds": each.seconds,
                "processor_seconds": each.processor_seconds,
                "foretold_seconds": foretold(each, growth.machine, growth.host),
                "grown_bytes": each.grown_bytes,
                "planned_bytes": each.planned_bytes,
                "work": each.work._asdict(),
            }
            for each in growth.measured
        ],
    }
