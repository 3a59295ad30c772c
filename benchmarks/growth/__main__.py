"""Command: how a step's time and memory grow, and whether the cost model foretells them.

    python -m benchmarks.growth [--rounds N] [--out FILES]

Series of steps in which tokens, lengths, vocabulary, layers or ranks grow. A few of the points give the rates of the
machine, the model foretells the others. Prints the tables and writes them with the plot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

RESULTS = Path("benchmarks/results/growth")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status is 0 if all was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="visits to every point (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help=f"files to write, without ending ({RESULTS})"
    )
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be 1 at least")
    from benchmarks.growth.fit import rates_of
    from benchmarks.growth.measure import measure_all
    from benchmarks.growth.points import CALIBRATION, all_points
    from benchmarks.growth.report import Growth, write
    from benchmarks.turns.machine import cores, machine
    from benchmarks.turns.progress import Progress

    points = all_points()
    progress = Progress(len(points) * given.rounds)
    measured = measure_all(points, given.rounds, progress.step)
    rates, host = rates_of([each for each in measured if each.point in CALIBRATION], cores())
    growth = Growth(measured, rates, host, machine("cpu", 1), list(clusters()))
    print(write(growth, given.out, f"python -m benchmarks.growth --rounds {given.rounds}"))
    print(f"{given.out}.md, .json and .svg are written")
    return 0


def clusters() -> Iterator[str]:
    """The base recipe on 8, 64 and 512 GPUs, as the dry run prints it."""
    from data.recipe import parse_recipe, read_recipe
    from training.build import encoder_config
    from training.config import Recipe
    from training.plan import data_ranks_of, lines_of_time, parts_of
    from training.sharding import read_sharding, resolve_sharding

    path = Path("ds_configs/zero3.json")
    for world in (8, 64, 512):
        raw = read_recipe("recipes/base.yaml")
        recipe = parse_recipe(raw, Recipe)
        ranks = data_ranks_of(recipe, world)
        resolved = resolve_sharding(read_sharding(path), path, recipe, raw.path, ranks)
        assert recipe.model.vocabulary_size is not None
        config = encoder_config(recipe, recipe.model.vocabulary_size, 0)
        yield f"{raw.path}, {path}, {world} GPUs"
        yield from lines_of_time(recipe, resolved, parts_of(recipe, config, resolved, "cuda"), ranks)


if __name__ == "__main__":
    sys.exit(main())
