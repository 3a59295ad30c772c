"""What the losses are meant to reach on two processor cores, and whether they did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from benchmarks.kernels.problem import VOCABULARY, WIDTH, Problem
from benchmarks.kernels.rounds import Result

_MIB: Final = 2**20
_OURS: Final = ("streaming", "native", "triton", "cuda")


class Goal(NamedTuple):
    """A figure of one problem, and the most it may be."""

    what: str
    operation: str
    size: dict[str, int]
    figure: Callable[[Mapping[str, Result]], float | None]  # None if what it needs was not measured
    most: float
    unit: str


class Verdict(NamedTuple):
    """A goal and what was found."""

    goal: Goal
    found: float | None

    def words(self) -> str:
        """met, missed, or not measured."""
        if self.found is None:
            return "not measured here"
        return "met" if self.found <= self.goal.most else "missed"


def _fastest(results: Mapping[str, Result]) -> Result | None:
    found = [results[name] for name in _OURS if name in results and results[name].seconds]
    return min(found, key=Result.median, default=None)


def _time(against: str) -> Callable[[Mapping[str, Result]], float | None]:
    def figure(results: Mapping[str, Result]) -> float | None:
        mine, other = _fastest(results), results.get(against)
        return None if mine is None or other is None or not other.seconds else mine.ratio(other)

    return figure


def _memory(beyond: int | None = None) -> Callable[[Mapping[str, Result]], float | None]:
    """MiB of extra memory, less that of the gradient with this number."""

    def figure(results: Mapping[str, Result]) -> float | None:
        mine = _fastest(results)
        if mine is None or mine.extra_bytes is None:
            return None
        return (mine.extra_bytes - (0 if beyond is None else mine.gradient_bytes[beyond])) / _MIB

    return figure


_LARGE: Final = {"pairs": 131_072, "width": WIDTH}
GOALS: Final = (
    Goal("alignment, extra memory with its gradients", "alignment", _LARGE, _memory(), 1024, "MiB"),
    Goal("alignment, time against its four products", "alignment", _LARGE, _time("products"), 1.3, "x"),
    Goal(
        "head, extra memory beyond the table's gradient", "vocabulary",
        {"rows": 8192, "width": WIDTH, "ids": VOCABULARY}, _memory(beyond=1), 256, "MiB",
    ),
    Goal(
        "head, time against dense (rows that dense holds)", "vocabulary",
        {"rows": 1024, "width": WIDTH, "ids": VOCABULARY}, _time("dense"), 1.0, "x",
    ),
    Goal(
        "margin, time against gather + einsum", "margin",
        {"rows": 4096, "negatives": 15, "width": WIDTH}, _time("gather"), 0.2, "x",
    ),
)  # fmt: skip


def verdicts(measured: Sequence[tuple[Problem, Sequence[Result]]]) -> list[Verdict]:
    """What is known of each goal. Those are for float32 on a CPU; of other problems nothing is said."""
    found = []
    for goal in GOALS:
        value = None
        for problem, results in measured:
            if (problem.operation, problem.size, problem.dtype, problem.device) == (
                goal.operation, goal.size, "float32", "cpu",
            ):  # fmt: skip
                value = goal.figure({result.contestant: result for result in results})
        found.append(Verdict(goal, value))
    return found
