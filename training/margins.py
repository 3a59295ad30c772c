"""The constants of the margin losses in a run: their scale, which follows what student and teacher separate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.settings.margin import MarginConfig
from data.settings.tasks import TasksConfig
from kernels.margin import GapSums, MarginForm

_KEPT = 0.99  # of the sums of earlier steps: the scale is that of about the last hundred


class Margins:
    """A form for each margin task of a recipe. Its state is the sums from which the running scales are made.

    A scale is a function of the steps before, summed over all ranks and microbatches, so that it is the same on
    every rank; what a step adds is used from the next one on.
    """

    def __init__(self, tasks: TasksConfig) -> None:
        """Nothing is known before the first step: its scale is 1."""
        named = {"adaptive_margin": tasks.adaptive_margin, "in_batch_margin": tasks.in_batch_margin}
        self._configs: dict[str, MarginConfig] = {
            name: config for name, config in named.items() if config is not None
        }
        # terms, sums of Ds, Ds^2, Dt, Dt^2
        self._sums = {name: np.zeros(5) for name in self._configs}

    def form(self, name: str) -> MarginForm | None:
        """The form of a task in the next step, None where the task is off."""
        config = self._configs.get(name)
        if config is None:
            return None
        return MarginForm(
            config.form, self.scale(name), config.offset, config.minimum, config.maximum, config.tau
        )

    def scale(self, name: str) -> float:
        """What the teacher's gaps are multiplied with."""
        scale = self._configs[name].scale
        if scale != "running":
            return scale
        terms, student, student_squares, teacher, teacher_squares = self._sums[name]
        if terms == 0:
            return 1.0
        of_student = _sd(terms, student, student_squares)
        of_teacher = _sd(terms, teacher, teacher_squares)
        return of_student / of_teacher if of_teacher > 0 else 1.0

    def update(self, gaps: Mapping[str, np.ndarray]) -> None:
        """Take the sums (6,) of a step's terms, over all ranks; sums that are not finite are left out."""
        for name, found in gaps.items():
            sums = np.delete(found, GapSums._fields.index("active"))
            if np.isfinite(sums).all():
                self._sums[name] = _KEPT * self._sums[name] + sums

    def scalars(self, gaps: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scale, share of the active terms, means and spreads of the gaps in a step that had these sums."""
        values: dict[str, float] = {}
        for name, found in gaps.items():
            values[f"margin/{name}/scale"] = self.scale(name)
            terms, active, student, student_squares, teacher, teacher_squares = found.tolist()
            if not terms:
                continue
            values[f"margin/{name}/active"] = active / terms
            values[f"margin/{name}/student_mean"] = student / terms
            values[f"margin/{name}/student_sd"] = _sd(terms, student, student_squares)
            values[f"margin/{name}/teacher_mean"] = teacher / terms
            values[f"margin/{name}/teacher_sd"] = _sd(terms, teacher, teacher_squares)
        return values

    def state(self) -> dict[str, Any]:
        """Plain numbers, exact in JSON."""
        return {name: sums.tolist() for name, sums in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``."""
        self._sums |= {name: np.array(sums) for name, sums in state.items() if name in self._sums}


def _sd(terms: float, total: float, squares: float) -> float:
    return math.sqrt(max(0.0, float(squares) / float(terms) - (float(total) / float(terms)) ** 2))
