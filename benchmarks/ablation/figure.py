"""The plot of an ablation: one panel a figure, one line a variant, readable without colour."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.ablation.table import BEFORE, TIMES, Row, Table, mean_and_spread

_CONTROL = {"masked/camlm/accuracy": "masked/camlm_control/accuracy"}  # shown in the panel of its task


def svg(table: Table) -> str:
    """The plot as SVG.

    Filled marks are means, bars the spread, rings the seeds, a cross the control; the dotted line is the first variant.
    """
    figure = _drawn(table)
    out = io.StringIO()
    # Text stays text; no date, so that the same results give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "calque"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _drawn(table: Table) -> Figure:
    panels = [name for name in table.heads if name not in TIMES and name not in _CONTROL.values()]
    rows = table.rows
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(1.6 + 2.6 * columns, lines * (0.9 + 0.24 * len(rows))), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number < len(panels):
            _panel(axes, panels[number], table)
        else:
            axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _panel(axes: Any, name: str, table: Table) -> None:
    control = _CONTROL.get(name)
    axes.set_title(table.heads[name], fontsize=9)
    axes.set_xlabel("accuracy, %", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    first = next((row.values[name] for row in table.rows if row.title != BEFORE and name in row.values), None)
    if first is not None:
        axes.axvline(100 * mean_and_spread(first)[0], color="0.5", linestyle=":", linewidth=1)
    for place, row in enumerate(table.rows):
        axes.axhline(place, color="0.93", linewidth=0.8, zorder=0)
        _mark(axes, place, row, name, "o", "black", table.heads[name])
        if control is not None:
            _mark(axes, place, row, control, "x", "0.35", table.heads.get(control, ""))
    if control in table.heads:
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes.legend(once.values(), once.keys(), fontsize=7, loc="best")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _mark(axes: Any, place: int, row: Row, name: str, marker: str, color: str, label: str) -> None:
    values: Sequence[float] = [100 * value for value in row.values.get(name, [])]
    if not values:
        return
    mean, spread = mean_and_spread(values)
    if len(values) > 1:
        axes.errorbar(
            mean, place, xerr=spread, fmt="none", ecolor=color, color=color, elinewidth=1, capsize=2
        )
        axes.plot(values, [place] * len(values), "o", markersize=4, color=color, mfc="none", mew=0.6)
    axes.plot(mean, place, marker, markersize=5, color=color, label=label, linestyle="none")
