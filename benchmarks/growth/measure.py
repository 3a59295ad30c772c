"""Measures points: the ranks of one number of ranks are started once and run all points of that number."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import groupby
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

_SHARDING = Path("ds_configs/cpu.json")


class Measured(NamedTuple):
    """A point, and what was found."""

    point: Point
    seconds: float  # of a step, the slowest rank's; of the fastest round: what others take only adds
    processor_seconds: float  # of all ranks together; least
    grown_bytes: int  # of all ranks: by how much they grew, weights and optimizer among it
    contents: Contents  # of a rank, the mean
    work: Work  # of a rank
    planned_bytes: int  # of all ranks, by arithmetic


def measure_all(points: Sequence[Point], rounds: int, step: Callable[[str], None]) -> list[Measured]:
    """In the order of ``points``, which is by ranks; ``step`` is told after each."""
    found: list[Measured] = []
    for texts in dict.fromkeys(point.problem.texts for point in points):
        prepare_texts(texts)
    for ranks, of_ranks in groupby(points, key=lambda point: point.ranks):
        processes = _started(ranks)
        try:
            # The first twice, and once for nothing: what is imported at the first step is.
            first = next(of_ranks)
            for number, point in enumerate((first, first, *of_ranks)):
                answers = _asked(processes, point, rounds)
                if number == 0:
                    continue
                found.append(_of_answers(point, answers))
                step(
                    f"{ranks} rank(s), {found[-1].contents.tokens * ranks:,} tokens: {found[-1].seconds:.2f} s"
                )
        finally:
            for process in processes:
                process.close()
    return found


def _asked(processes: Sequence[Process], point: Point, rounds: int) -> list[dict[str, Any]]:
    """What all of them found at a point, at the same time."""
    request = {
        "problem": {**point.problem._asdict(), "texts": point.problem.texts._asdict()},
        "rounds": rounds,
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


def _of_answers(point: Point, answers: Sequence[dict[str, Any]]) -> Measured:
    mean = {
        name: sum(answer[name] for answer in answers) // len(answers)
        for name in ("tokens", "rows", "predicted", "squares", "short_squares", "long_rows")
    }
    contents = Contents(mean["tokens"], mean["rows"], mean["predicted"], 0, 0, 0, squares=mean["squares"])
    kept = contents._replace(squares=mean["short_squares"], long_rows=mean["long_rows"])  # for the backward
    work, planned = _by_arithmetic(point, contents, kept)
    return Measured(
        point,
        min(max(of_round) for of_round in zip(*(a["seconds"] for a in answers), strict=True)),
        min(sum(of_round) for of_round in zip(*(a["processor_seconds"] for a in answers), strict=True)),
        sum(answer["grown_bytes"] or 0 for answer in answers),
        contents,
        work,
        planned * point.ranks,
    )


def _by_arithmetic(point: Point, contents: Contents, kept: Contents) -> tuple[Work, int]:
    from benchmarks.step.run import recipe_of

    recipe = recipe_of(point.problem, point.ranks)
    resolved = resolve_sharding(read_sharding(_SHARDING), _SHARDING, recipe, Path("benchmark"), point.ranks)
    config = encoder_config(recipe, point.problem.texts.ids, 0)
    parts = parts_of(recipe, config, resolved, "cpu")
    work = step_work(recipe, resolved, parts._replace(contents=contents), point.ranks)
    sizes = sizes_of(recipe, resolved, parts._replace(contents=kept), point.ranks)
    return work, sizes.peak - sizes.states.buckets  # of which little is ever touched here
