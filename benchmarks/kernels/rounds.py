"""Measures a problem: one process for each contestant, and rounds in which each of them runs once.

Contestants take turns, so that whatever else the machine does falls on all of them; their times are compared within a
round, and the median of those ratios is what the table says.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.kernels.problem import Problem
from benchmarks.turns.process import Process


class Result(NamedTuple):
    """What was found of one contestant."""

    contestant: str
    seconds: list[float] = []  # one a round
    processor_seconds: list[float] = []
    extra_bytes: int | None = None  # the most of any round
    gradient_bytes: tuple[int, ...] = ()  # those of the inputs' gradients, which are among the extra ones
    loss_error: float | None = None  # relative to float64, on a small problem
    gradient_error: float | None = None
    unavailable: str = ""  # why there is nothing

    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def ratio(self, other: Result) -> float:
        """How many times ``other``'s time this one takes: median over the rounds."""
        return statistics.median(
            mine / others for mine, others in zip(self.seconds, other.seconds, strict=True)
        )


def measure_all(problem: Problem, threads: int, step: Callable[[str], None]) -> list[Result]:
    """Measure every contestant of ``problem``; ``step`` is told what was done after each of steps_of(problem)."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    workers = []
    try:
        for name in problem.contestants:
            workers.append(_Worker(problem.operation, name, environment))
        for name, worker in zip(problem.contestants, workers, strict=True):
            worker.ask(problem._asdict())
            step(f"{name}: {worker.result.unavailable or 'ready'}")
        for number in range(problem.rounds):
            for worker in workers:
                if not worker.result.unavailable:
                    worker.ask({})
                seconds = worker.result.seconds[-1:]
                step(f"{worker.result.contestant}, round {number + 1}: {seconds[0] if seconds else 0:.2f} s")
    finally:
        for worker in workers:
            worker.close()
    return [worker.result for worker in workers]


def steps_of(problem: Problem) -> int:
    """How often measure_all says that something was done."""
    return len(problem.contestants) * (1 + problem.rounds)


class _Worker:
    """A process with one contestant, and what it has told so far."""

    def __init__(self, operation: str, contestant: str, environment: dict[str, str]) -> None:
        self.result = Result(contestant, [], [])
        self._process = Process("benchmarks.kernels.worker", [operation, contestant], environment)

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request, wait for the answer and keep it."""
        answer, result = self._process.ask(request), self.result
        if "seconds" in answer:
            result.seconds.append(answer["seconds"])
            result.processor_seconds.append(answer["processor_seconds"])
            peak = max(
                (p for p in (result.extra_bytes, answer["extra_bytes"]) if p is not None), default=None
            )
            answer = {"extra_bytes": peak, "gradient_bytes": tuple(answer["gradient_bytes"])}
        self.result = result._replace(
            **{key: value for key, value in answer.items() if key in Result._fields}
        )

    def close(self) -> None:
        """End the process."""
        self._process.close()
