"""Measures a problem: rounds in which each contestant runs one step, so that what else the machine does falls on all.

    results = measure_all(problem, threads=2, step=print)        texts are prepared first

Times are compared within a round; the median of those ratios is what the tables say.
"""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from benchmarks.step.contestants import CONTESTANTS
from benchmarks.step.problem import Problem, Work
from benchmarks.step.texts import prepare_texts
from benchmarks.turns.process import Process

BESIDE: Final = "one"  # who takes turns with those for which there is no memory beside the others


class Result(NamedTuple):
    """What was found of one contestant."""

    contestant: str
    seconds: tuple[float, ...] = ()  # one a round, of the slowest rank
    processor_seconds: tuple[float, ...] = ()  # of all ranks
    peak_bytes: int | None = None  # of all ranks, the most of any round
    work: Work | None = None
    parts: Mapping[str, float] = {}  # seconds of each part of a step, where a profile was asked for
    unavailable: str = ""  # why there is nothing
    beside: tuple[
        float, ...
    ] = ()  # seconds of "one" in the same rounds, where it had some with this one alone

    def tokens_per_second(self) -> float:
        """Real ones: no padding is counted. Median over the rounds."""
        assert self.work is not None
        return self.work.tokens / statistics.median(self.seconds)

    def ratio(self, other: Result) -> float:
        """How many times ``other``'s speed, in real tokens: median over the rounds."""
        assert self.work is not None and other.work is not None
        seconds = other.beside if self.contestant == BESIDE and other.beside else self.seconds
        return statistics.median(
            (self.work.tokens / mine) / (other.work.tokens / others)
            for mine, others in zip(seconds, other.seconds, strict=True)
        )

    def processor_ratio(self, other: Result) -> float:
        """``ratio`` by the time of processors instead of the clock: what other processes take is not in it."""
        return self._replace(seconds=self.processor_seconds).ratio(
            other._replace(seconds=other.processor_seconds)
        )


def measure_all(
    problem: Problem, threads: int, step: Callable[[str], None], *, profile: bool = False
) -> list[Result]:
    """Measure every contestant of ``problem``; ``step`` is told what was done after each of steps_of(problem).

    Those for which there is no memory beside all others take turns with Calque's process alone, after these. With
    ``profile`` each runs one step more, under torch's profiler.
    """
    prepare_texts(problem.texts)
    step("texts are prepared")
    found: dict[str, Result] = {}
    for names in passes_of(problem):
        results = _measure_together(names, problem, threads, step, profile=profile)
        for result in results.values():
            if result.contestant in problem.apart and BESIDE in results:
                result = result._replace(beside=results[BESIDE].seconds)
            found.setdefault(result.contestant, result)
    return [found[name] for name in problem.contestants]


def passes_of(problem: Problem) -> list[tuple[str, ...]]:
    """The contestants that take turns with each other."""
    apart = [name for name in problem.contestants if name in problem.apart]
    beside = (BESIDE,) if BESIDE in problem.contestants else ()
    together = tuple(name for name in problem.contestants if name not in apart)
    return [names for names in (together, *((*beside, name) for name in apart)) if names]


def _measure_together(
    names: Sequence[str], problem: Problem, threads: int, step: Callable[[str], None], *, profile: bool
) -> dict[str, Result]:
    groups: list[_Ranks] = []
    try:
        for name in names:
            groups.append(_Ranks(name, threads, problem.device))
            groups[-1].send({**problem._asdict(), "texts": problem.texts._asdict()})
        for group in groups:
            group.receive()
        # Their first steps at the same time, but on a GPU, which has not memory for those of all.
        ready = [group for group in groups if not group.result.unavailable]
        for together in [ready] if problem.device == "cpu" else [[group] for group in ready]:
            for group in together:
                group.send({"begin": True})
            for group in together:
                group.receive()
        for group in groups:
            step(f"{group.result.contestant}: {group.result.unavailable or 'ready'}")
        for number in range(problem.rounds):
            for group in groups:
                if not group.result.unavailable:
                    group.ask({})
                seconds = group.result.seconds[-1:]
                step(f"{group.result.contestant}, round {number + 1}: {seconds[0] if seconds else 0:.2f} s")
        for group in groups if profile else ():
            if not group.result.unavailable:
                group.ask({"profile": True})
    finally:
        for group in groups:
            group.close()
    return {group.result.contestant: group.result for group in groups}


def steps_of(problem: Problem) -> int:
    """How often measure_all says that something was done."""
    return 1 + sum(map(len, passes_of(problem))) * (1 + problem.rounds)


class _Ranks:
    """The processes of one contestant, and what they have told so far."""

    def __init__(self, name: str, threads: int, device: str) -> None:
        self.result = Result(name)
        ranks = CONTESTANTS[name].ranks
        shared = {
            **os.environ,
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": str(max(1, threads // ranks)),
            "TOKENIZERS_PARALLELISM": "false",
        }
        if device == "cpu":
            shared["CUDA_VISIBLE_DEVICES"] = ""  # a run takes a GPU where it sees one
        self._processes = [
            Process("benchmarks.step.worker", [name], {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)
        ]

    def ask(self, request: dict[str, Any]) -> None:
        """``send``, then ``receive``."""
        self.send(request)
        self.receive()

    def send(self, request: dict[str, Any]) -> None:
        """The same to every rank: they run it together."""
        for process in self._processes:
            process.send(request)

    def receive(self) -> None:
        """Wait for all ranks and keep what they tell."""
        answers = [process.receive() for process in self._processes]
        faults = [answer["unavailable"] for answer in answers if "unavailable" in answer]
        if faults:
            self.result = self.result._replace(unavailable=faults[0])
        elif "parts" in answers[0]:
            self.result = self.result._replace(parts=answers[0]["parts"])
        elif "built" in answers[0]:
            return
        elif "seconds" in answers[0]:
            self._keep(answers)
        else:
            self.result = self.result._replace(work=Work(**answers[0]))

    def _keep(self, answers: list[dict[str, Any]]) -> None:
        result = self.result
        peaks = [answer["peak_bytes"] for answer in answers]
        now = None if None in peaks else sum(peaks)
        self.result = result._replace(
            seconds=(*result.seconds, max(answer["seconds"] for answer in answers)),
            processor_seconds=(
                *result.processor_seconds,
                sum(answer["processor_seconds"] for answer in answers),
            ),
            peak_bytes=max((peak for peak in (result.peak_bytes, now) if peak is not None), default=None),
        )

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.close()


def free_port() -> int:
    """One at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
