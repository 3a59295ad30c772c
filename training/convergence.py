"""When training is complete: both the bilingual and the monolingual task have converged on held-out text.

    held-out loss of each evaluation ─▶ smoothed ─▶ best so far ─▶ improvement over the last W evaluations
                                                                     └▶ less than the tolerance: converged

Both in the same evaluation: complete (US20220171941A1). Only one: part of its budget moves to the other. The longest
run is ``steps`` of the recipe, which is ``steps * batch.step_tokens`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from data.recipe import Section

MEASURED = {"camlm": "bilingual", "mmlm": "monolingual", "btmlm": "monolingual"}  # task -> its side


class ConvergenceConfig(Section):
    """The rule of convergence; a recipe without this section trains for all its steps."""

    bilingual: Literal["camlm"] = "camlm"
    monolingual: Literal["btmlm", "mmlm"] | None = None  # btmlm if it is on, else mmlm
    # On which pseudo tokens BTMLM's held-out loss is taken: of the current weights, or a set that stays the same.
    pseudo_tokens: Literal["regenerated", "frozen"] = "regenerated"
    relative_tolerance: float = Field(1e-3, gt=0, lt=1)
    window: int = Field(5, ge=1)  # W, in evaluations
    smoothing: float = Field(0.5, ge=0, lt=1)  # what is kept of the running mean at each evaluation
    minimum_tokens: int = Field(0, ge=0)  # before so many tokens nothing has converged
    moved: float = Field(0.5, ge=0, lt=1)  # of what it has left, at each evaluation; 0: budgets stay
    floor: float = Field(0.2, gt=0, le=1)  # the part of its budget that a converged task keeps at least
    stop: bool = True  # False: say it and go on, since transfer may gain after the losses have flattened

    def score(self, task: str) -> str:
        """The name of a task's held-out loss among the figures of an evaluation."""
        frozen = task == "btmlm" and self.pseudo_tokens == "frozen"
        return f"masked/{task}_frozen/loss" if frozen else f"masked/{task}/loss"


class TaskJudgement(NamedTuple):
    """What an evaluation says about a task."""

    loss: float
    smoothed: float
    improvement: float  # of the best smoothed loss over the window, relative; nan before there is a window
    converged: bool


class Judgement(NamedTuple):
    """What an evaluation says: task -> judgement, whether it is over, and what moves where from now on."""

    tasks: dict[str, TaskJudgement]
    complete: bool
    moved: dict[str, float]  # "moved/GIVER/TAKER" -> part of the giver's budget, where it changed


class Convergence:
    """The rule. Its state is the smoothed losses and what was said last; numbers alone, no clock, no files."""

    def __init__(self, config: ConvergenceConfig, bilingual: str, monolingual: str) -> None:
        """Nothing is known yet."""
        self._config = config
        self.tasks = (bilingual, monolingual)
        self._series = {task: _Series() for task in self.tasks}
        self._kept = dict.fromkeys(self.tasks, 1.0)
        self.converged = dict.fromkeys(self.tasks, False)
        self.complete_since: int | None = None  # the step of the evaluation that found both converged first

    def update(
        self, step: int, tokens: int, losses: Mapping[str, float], trained: Collection[str]
    ) -> Judgement:
        """Take the held-out ``losses`` of the evaluation after ``step``, when ``tokens`` were spent.

        A task that is not in ``trained`` (its gate is shut, its stage is to come) is not judged, and its losses so
        far are forgotten: one that has not been learned is as flat as one that has been.
        """
        found = {}
        for task in self.tasks:
            if task not in trained:
                self._series[task] = _Series()
            found[task] = self._judged(task, losses[task], tokens, task in trained)
        self.converged = {task: judgement.converged for task, judgement in found.items()}
        complete = all(self.converged.values())
        if complete and self.complete_since is None:
            self.complete_since = step
        return Judgement(found, complete, self._moves(trained))

    def _judged(self, task: str, loss: float, tokens: int, trained: bool) -> TaskJudgement:
        config, series = self._config, self._series[task]
        if not trained or not math.isfinite(loss):
            return TaskJudgement(loss, series.mean, math.nan, False)
        series.add(loss, config.smoothing, config.window)
        improvement = series.improvement(config.window)
        converged = improvement < config.relative_tolerance and tokens >= config.minimum_tokens
        return TaskJudgement(loss, series.mean, improvement, converged)

    def _moves(self, trained: Collection[str]) -> dict[str, float]:
        """What changed: the one converged task gives, until both have converged or neither."""
        before = dict(self._kept)
        only_one = sum(self.converged.values()) == 1 and all(task in trained for task in self.tasks)
        for task, converged in self.converged.items():
            kept = max(self._config.floor, self._kept[task] * (1 - self._config.moved))
            self._kept[task] = kept if only_one and converged and self._config.moved else 1.0
        one, other = self.tasks
        names = {one: f"moved/{one}/{other}", other: f"moved/{other}/{one}"}
        return {names[task]: 1 - kept for task, kept in self._kept.items() if kept != before[task]}

    def state(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {
            "series": {task: list(series.state()) for task, series in self._series.items()},
            "kept": dict(self._kept),
            "converged": dict(self.converged),
            "complete_since": self.complete_since,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``."""
        self._series = {task: _Series(*state["series"][task]) for task in self.tasks}
        self._kept = {task: float(state["kept"][task]) for task in self.tasks}
        self.converged = {task: bool(state["converged"][task]) for task in self.tasks}
        self.complete_since = state["complete_since"]


class _Series:
    """A task's held-out losses: their exponential mean, corrected for its start, and the best of it so far."""

    def __init__(self, total: float = 0.0, weight: float = 0.0, bests: Collection[float] = ()) -> None:
        self._total, self._weight, self._bests = total, weight, list(bests)

    @property
    def mean(self) -> float:
        return self._total / self._weight if self._weight else math.nan

    def add(self, loss: float, smoothing: float, window: int) -> None:
        self._total = smoothing * self._total + (1 - smoothing) * loss
        self._weight = smoothing * self._weight + (1 - smoothing)
        best = min(self.mean, self._bests[-1]) if self._bests else self.mean
        self._bests = [*self._bests[-window:], best]

    def improvement(self, window: int) -> float:
        """Of the best over the last ``window`` evaluations, relative to what it was before them."""
        if len(self._bests) <= window:
            return math.nan
        return (self._bests[-1 - window] - self._bests[-1]) / max(abs(self._bests[-1 - window]), 1e-12)

    def state(self) -> tuple[float, float, list[float]]:
        return self._total, self._weight, self._bests
