"""The files of the benchmark: the table in Markdown, its values as JSON, the plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.planner import WINDOW
from benchmarks.planner.courses import STEP_TOKENS, STREAMS, Course

Courses = Mapping[str, Mapping[str, Course]]  # by sampling, by who planned


def write(
    courses: Courses,
    times: Mapping[int, tuple[float, int]],
    held: Mapping[int, tuple[float, float]],
    steps: int,
    folder: Path,
) -> str:
    """Write planner.md, .json and .svg into ``folder``; returns the text of the first.

    ``times``: tokens of a step -> ms of a plan and its records; ``held``: records in all -> MB, and ms of a plan.
    """
    text = "\n".join(
        [
            f"{STREAMS} streams, {steps:,} steps of {STEP_TOKENS:,} tokens.\n",
            *_lines(courses),
            "\n| tokens of a step | records | planning, ms of process time |",
            "|---:|---:|---:|",
            *(f"| {tokens:,} | {records:,} | {ms:.1f} |" for tokens, (ms, records) in times.items()),
            "\n| records in all | own memory of what plans them, MB | a plan after a million steps, ms |",
            "|---:|---:|---:|",
            *(f"| {records:,} | {mb:.1f} | {ms:.1f} |" for records, (mb, ms) in held.items()),
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "planner.md").write_text(text + "\n", encoding="utf-8")
    found = {
        setting: {who: {"window": c.off(WINDOW), "run": c.off()} for who, c in of.items()}
        for setting, of in courses.items()
    }
    (folder / "planner.json").write_text(
        json.dumps({"points": found, "milliseconds": times, "memory": held}, indent=1) + "\n"
    )
    _plot(courses, folder / "planner.svg")
    return text


def _lines(courses: Courses) -> Iterator[str]:
    """The table, in Markdown."""
    yield f"| sampling | who | worst window of {WINDOW:,} steps, points | whole run, points |"
    yield "|---|---|---:|---:|"
    for setting, of_setting in courses.items():
        for who, course in of_setting.items():
            yield f"| {setting} | {who} | {course.off(WINDOW):.4f} | {course.off():.4f} |"


def _plot(courses: Courses, path: Path) -> None:
    """The worst stream's distance from its budget over the run so far, step by step."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(courses), sharey=True)
    for axes, (setting, of_setting) in zip(panels, courses.items(), strict=True):
        for (who, course), style in zip(of_setting.items(), ("-", "--"), strict=True):
            ahead = np.abs(np.cumsum(course.tokens - course.due, axis=0)).max(1)
            points = 100 * ahead / np.cumsum(course.tokens.sum(1))
            steps = np.arange(1, len(points) + 1)
            axes.semilogy(steps[9::10], points[9::10], style, color="black", label=who)
        axes.axhline(0.1, color="0.6", linestyle=":", linewidth=1)
        axes.set_title(setting, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    panels[0].set_ylabel("worst stream off its budget, points", fontsize=8)
    panels[0].legend(fontsize=8)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "calque"}):
        figure.savefig(path, metadata={"Date": None})
