"""The plot: a panel a series, what was measured and what the model says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from benchmarks.growth.fit import foretold
from benchmarks.growth.points import CALIBRATION, SERIES, size_of

if TYPE_CHECKING:
    from benchmarks.growth.report import Growth


def plot(growth: Growth, path: Path) -> None:
    """Filled marks: foretold; open ones: the rates were taken from them; the line is the model."""
    figure = Figure(figsize=(12, 2.8), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(SERIES)), SERIES.items(), strict=True):
        sizes = [size_of(title, point) for point in points]
        found = [growth.of(point) for point in points]
        axes.plot(
            sizes,
            [foretold(each, growth.machine, growth.host) for each in found],
            "-",
            color="0.5",
            label="model",
        )
        for known, label in ((False, "measured"), (True, "calibration")):
            places = [n for n, point in enumerate(points) if (point in CALIBRATION) is known]
            axes.plot(
                [sizes[n] for n in places], [found[n].seconds for n in places], "o", color="black",
                fillstyle="none" if known else "full", markersize=5, label=label,
            )  # fmt: skip
        axes.set_xlabel(title, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
    figure.axes[0].set_ylabel("seconds of a step", fontsize=8)
    figure.axes[0].legend(fontsize=7)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "calque"}):
        figure.savefig(path, metadata={"Date": None})
