"""What a step is to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from benchmarks.step.problem import XLM_R, Problem
from benchmarks.step.rounds import Result

Results = Mapping[str, Result]


class Goal(NamedTuple):
    """A figure of a problem's results that is to be so large, or so small."""

    what: str
    figure: Callable[[Results], float | None]
    bound: float
    at_least: bool = True
    concerns: Callable[[Problem], bool] = lambda problem: True


class Verdict(NamedTuple):
    """A goal at one problem."""

    goal: Goal
    found: float

    def words(self) -> str:
        """met or missed."""
        return "met" if (self.found >= self.goal.bound) == self.goal.at_least else "missed"


def _speed(mine: str, other: str) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        one, two = (results.get(name) for name in (mine, other))
        return one.ratio(two) if one and two and one.seconds and two.seconds else None

    return figure


def _memory(mine: str, other: str) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        one, two = (results.get(name) for name in (mine, other))
        return one.peak_bytes / two.peak_bytes if one and two and one.peak_bytes and two.peak_bytes else None

    return figure


GOALS: Final = (
    Goal("speed against padded batches", _speed("one", "padded"), 5),
    Goal("speed against batches grouped by length", _speed("one", "grouped"), 2),
    Goal("speed against sentence-transformers", _speed("one", "sentence_transformers"), 1.5),
    Goal("share of the matrix products' rate", _speed("one", "products"), 0.7),
    Goal("ZeRO-3 against plain data parallelism", _speed("zero3", "ddp"), 0.75),
    Goal(
        "memory against padded batches", _memory("one", "padded"), 0.5,
        at_least=False, concerns=lambda problem: problem.vocabulary == XLM_R,
    ),
)  # fmt: skip


def verdicts(problem: Problem, results: Sequence[Result]) -> list[Verdict]:
    """Of the goals that were measured at ``problem``; they are for the CPU, of a GPU nothing is said."""
    if problem.device != "cpu":
        return []
    by_name = {result.contestant: result for result in results}
    found = [(goal, goal.figure(by_name)) for goal in GOALS if goal.concerns(problem)]
    return [Verdict(goal, value) for goal, value in found if value is not None]
