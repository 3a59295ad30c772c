"""Measures points, all of them in every round: the ranks of one number of ranks are started once and run theirs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth.points import Point
from benchmarks.step.rounds import free_port
from benchmarks.step.texts import prepare_texts
from benchmarks.turns.process import Process
from training.activation_sizes import Contents
from training.build import encoder_config
from training.cost import Work
from training.plan import parts_of, sizes_of, step_work
from training.sharding import read_sharding, resolve_sharding

Answer = dict[str, Any]  # of a rank

_SHARDING = Path("ds_configs/cpu.json")
_STEPS = 3  # of a visit, after two that are not timed


class Measured(NamedTuple):
    """A point, and what was found."""

    point: Point
    seconds: float  # of a step, the slowest rank's; of the fastest step: what others take only adds
    processor_seconds: float  # of all ranks together; least
    grown_bytes: int  # of all ranks: by how much they grew, weights and optimizer among it
    contents: Contents  # of a rank, the mean
    work: Work  # of a rank
    planned_bytes: int  # of all ranks, by arithmetic


def measure_all(points: Sequence[Point], rounds: int, step: Callable[[str], None]) -> list[Measured]:
    """In the order of ``points``; ``step`` is told after each visit.

    Every round visits all points: a machine that others have a part in has fast minutes and slow ones, and so each
    point has its part of both.
    """
    for texts in dict.fromkeys(point.problem.texts for point in points):
        prepare_texts(texts)
    started: dict[int, list[Process]] = {}  # by how many they are
    visits: dict[Point, list[list[Answer]]] = {point: [] for point in points}
    try:
        for _ in range(rounds):
            for point in points:
                if point.ranks not in started:
                    started[point.ranks] = _started(point.ranks)
                    _asked(started[point.ranks], point)  # for nothing: what is imported at the first step is
                visits[point].append(_asked(started[point.ranks], point))
                seconds = _fastest(visits[point])
                step(f"{point.ranks} rank(s), {point.problem.tokens:,} tokens: {seconds:.2f} s")
    finally:
        for processes in started.values():
            for process in processes:
                process.close()
    return [_of_visits(point, answers) for point, answers in visits.items()]


def _asked(processes: Sequence[Process], point: Point) -> list[Answer]:
    """What all of them found at a point, at the same time."""
    request = {
        "problem": {**point.problem._asdict(), "texts": point.problem.texts._asdict()},
        "steps": _STEPS,
    }
    for process in processes:
        process.send(request)
    answers = [process.receive() for process in processes]
    faults = [answer["unavailable"] for answer in answers if "unavailable" in answer]
    if faults:
        raise RuntimeError(f"{point}: {faults[0]}")
    return answers


def _started(ranks: int) -> list[Process]:
    shared = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    return [
        Process("benchmarks.growth.worker", [], {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]


def _of_visits(point: Point, visits: Sequence[list[Answer]]) -> Measured:
    """What the ranks found at each visit; what is in a step they found at all alike."""
    mean = {
        name: sum(answer[name] for answer in visits[0]) // point.ranks
        for name in ("tokens", "rows", "predicted", "squares", "short_squares", "long_rows")
    }
    contents = Contents(mean["tokens"], mean["rows"], mean["predicted"], 0, 0, 0, squares=mean["squares"])
    kept = contents._replace(squares=mean["short_squares"], long_rows=mean["long_rows"])  # for the backward
    work, planned = _by_arithmetic(point, contents, kept)
    return Measured(
        point,
        _fastest(visits),
        min(sum(of_step) for of_step in _steps(visits, "processor_seconds")),
        max(sum(answer["grown_bytes"] or 0 for answer in answers) for answers in visits),
        contents,
        work,
        planned * point.ranks,
    )


def _fastest(visits: Sequence[list[Answer]]) -> float:
    """Seconds of the fastest step, by its slowest rank."""
    return min(max(of_step) for of_step in _steps(visits, "seconds"))


def _steps(visits: Sequence[list[Answer]], name: str) -> Iterator[tuple[float, ...]]:
    """Of each step of all visits what it took the ranks."""
    for answers in visits:
        yield from zip(*(answer[name] for answer in answers), strict=True)


def _by_arithmetic(point: Point, contents: Contents, kept: Contents) -> tuple[Work, int]:
    from benchmarks.step.run import recipe_of

    recipe = recipe_of(point.problem, point.ranks)
    resolved = resolve_sharding(read_sharding(_SHARDING), _SHARDING, recipe, Path("benchmark"), point.ranks)
    config = encoder_config(recipe, point.problem.texts.ids, 0)
    parts = parts_of(recipe, config, resolved, "cpu")
    work = step_work(recipe, resolved, parts._replace(contents=contents), point.ranks)
    sizes = sizes_of(recipe, resolved, parts._replace(contents=kept), point.ranks)
    return work, sizes.peak - sizes.states.buckets  # of which little is ever touched here
