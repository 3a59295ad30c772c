"""Command: measure one training step of Calque beside those of what one would run instead.

    python -m benchmarks.step [--preset small|quick|full|gpu] [--only NAME ...] [--problem N ...] [--profile]

Prints tables and writes them: benchmarks/results/step.md for preset full, step-PRESET.md for the others. What was
measured of other problems with the same preset before stays in the file.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.step.contestants import CONTESTANTS
from benchmarks.step.problem import PRESETS, Problem
from benchmarks.tables import plain
from benchmarks.turns.machine import cores, machine
from benchmarks.turns.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status is 0 if all was measured, 2 for what only the person can mend."""
    given = _parser().parse_args(arguments)
    every = list(enumerate(PRESETS[given.preset], 1))
    problems = [
        problem._replace(
            rounds=given.rounds or problem.rounds,
            contestants=tuple(name for name in problem.contestants if not given.only or name in given.only),
        )
        for number, problem in every
        if not given.problem or number in given.problem
    ]
    try:
        return _measure([problem for problem in problems if problem.contestants], given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; problems that were finished are in the files", file=sys.stderr)
        return 130


def _measure(problems: Sequence[Problem], given: argparse.Namespace) -> int:
    from benchmarks.step.report import Measured, goals_table, parts_table, read, table, work_line, write
    from benchmarks.step.rounds import measure_all, steps_of

    name = "step" if given.preset == "full" else f"step-{given.preset}"
    out = given.out or Path("benchmarks/results") / name
    command = shlex.join(["python", "-m", "benchmarks.step", "--preset", given.preset])
    order = [problem.title() for problem in PRESETS[given.preset]]
    kept = {one.problem.title(): one for one in read(out, given.preset)}
    where = machine(problems[0].device, given.threads) if problems else ""
    progress = Progress(sum(map(steps_of, problems)))
    for problem in problems:
        progress.say(problem.title())
        found = Measured(
            problem, where, measure_all(problem, given.threads, progress.step, profile=given.profile)
        )
        kept[problem.title()] = found
        write(out, [kept[title] for title in order if title in kept], command, given.preset)
        progress.say(f"{work_line(found)}\n{plain(table(found))}\n")
        if given.profile:
            progress.say(f"{plain(parts_table(found))}\n")
    measured = [kept[title] for title in order if title in kept]
    print(f"{plain(goals_table(measured))}\n\n{out}.md and {out}.json are written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--preset", choices=list(PRESETS), default="quick", help="sizes (default: %(default)s)"
    )
    parser.add_argument(
        "--problem", type=int, nargs="+", default=[], metavar="N", help="these of the preset's problems only"
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(CONTESTANTS), default=[], help="these contestants only"
    )
    parser.add_argument("--profile", action="store_true", help="also say where the time of a step goes")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="(default: one a core)")
    parser.add_argument("--out", type=Path, help="files to write, without ending")
    return parser


if __name__ == "__main__":
    sys.exit(main())
