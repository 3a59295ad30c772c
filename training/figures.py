"""Figures of the report: curves over the steps and bars of shares, as images that stand inside a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

POINTS = 1500  # of one curve; longer runs are thinned, so that the page stays small

Points = list[tuple[int, float]]


def curves(
    title: str,
    lines: Mapping[str, Points],
    *,
    thin: Mapping[str, Points] | None = None,
    levels: Mapping[str, float] | None = None,
    smooth: bool = False,
    accuracy: bool = False,
    log: bool = False,
) -> str:
    """Lines over the step as an ``<img>``; "" if no line has a point.

    ``thin`` lines stand behind, named at their ends; ``levels`` are dashed lines across; ``smooth`` draws a
    running mean over the raw line; ``accuracy`` shows the single points on a scale from 0 to 1.
    """
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    figure, axes = _canvas(title)
    axes.set_xlabel("step")
    for name, points in (thin or {}).items():
        if points:
            x, y = _axes_of(points)
            axes.plot(x, y, color="0.75", linewidth=0.8)
            axes.annotate(
                name, (x[-1], y[-1]), fontsize=6, color="0.5", xytext=(3, 0), textcoords="offset points"
            )
    for number, (name, points) in enumerate(lines.items()):
        x, y = _axes_of(_thinned(points))
        color = f"C{number}"
        if smooth and len(points) > 20:
            axes.plot(x, y, color=color, linewidth=0.5, alpha=0.3)
            axes.plot(x, _smoothed(y), color=color, label=name or None)
        else:
            axes.plot(x, y, color=color, label=name or None, marker="o" if accuracy else None, markersize=3)
    for number, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(level, color=f"C{len(lines) + number}", linestyle="--", linewidth=1, label=name)
    if accuracy:
        axes.set_ylim(0, 1.02)
    if log:
        axes.set_yscale("log")
    if any(lines) or levels:
        axes.legend(fontsize=8)
    return _image(figure, title)


def share_bars(title: str, scalars: Mapping[str, float], tasks: Sequence[str]) -> str:
    """``share/TASK`` of each task as a bar and ``budget/TASK`` as a mark on it, as an ``<img>``."""
    if not tasks:
        return ""
    figure, axes = _canvas(title)
    places = np.arange(len(tasks))
    axes.barh(places, [scalars[f"share/{task}"] for task in tasks], color="C0", height=0.6, label="share")
    budgets = [scalars.get(f"budget/{task}", math.nan) for task in tasks]
    axes.plot(budgets, places, "|", color="k", markersize=18, label="budget")
    axes.set_yticks(places, tasks)
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    return _image(figure, title)


def _canvas(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # here: who asks for a report of nothing need not wait for it

    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    return figure, axes


def _image(figure: Any, title: str) -> str:
    import matplotlib

    # As an image of its own, because ids of several SVGs in one page collide; without a date, so that the
    # same run gives the same page.
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "calque"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'


def _axes_of(points: Points) -> tuple[np.ndarray, np.ndarray]:
    return np.array([step for step, _ in points]), np.array([value for _, value in points])


def _thinned(points: Points) -> Points:
    """At most about POINTS of the points, evenly, the last one always."""
    stride = math.ceil(len(points) / POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential mean over about a fiftieth of the run, with the start corrected as in Adam."""
    keep, mean, out = 1 - 1 / max(5, len(values) / 50), 0.0, []
    for number, value in enumerate(values, start=1):
        mean = keep * mean + (1 - keep) * float(value)
        out.append(mean / (1 - keep**number))
    return np.array(out)
