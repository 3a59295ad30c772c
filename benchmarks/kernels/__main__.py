"""Command: measure time, extra memory and error of every implementation of every loss, beside other people's.

    python -m benchmarks.kernels [--preset quick|full] [--op alignment|margin|vocabulary] [--device cuda]

Prints tables and writes them: benchmarks/results/kernels.md for preset full, kernels-quick.md for quick. What was
measured of other operations with the same preset before stays in the file.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.kernels.problem import PRESETS, Problem
from benchmarks.kernels.report import (
    Measured,
    arithmetic_table,
    goals_table,
    read,
    table,
    write,
)
from benchmarks.kernels.rounds import measure_all, steps_of
from benchmarks.tables import plain
from benchmarks.turns.machine import cores, machine
from benchmarks.turns.progress import Progress

_OPERATIONS: Final = ("alignment", "margin", "vocabulary")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status is 0 if all was measured, 2 for what only the person can mend."""
    given = _parser().parse_args(arguments)
    try:
        where = machine(given.device, given.threads)
        problems = [
            problem._replace(
                device=given.device,
                dtype=given.dtype,
                rounds=given.rounds or problem.rounds,
                contestants=_chosen(problem, given.only),
            )
            for problem in PRESETS[given.preset]
            if given.op in (None, problem.operation)
        ]
        return _measure([problem for problem in problems if problem.contestants], given, where)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; problems that were finished are in the files", file=sys.stderr)
        return 130


def _measure(problems: Sequence[Problem], given: argparse.Namespace, where: str) -> int:
    out = given.out or Path("benchmarks/results") / ("kernels" if given.preset == "full" else "kernels-quick")
    command = shlex.join(["python", "-m", "benchmarks.kernels", *sys.argv[1:]])
    kept = read(out, given.preset)
    progress = Progress(sum(map(steps_of, problems)))
    for problem in problems:
        titles = {
            name: title
            for name, (title, _) in importlib.import_module(
                f"benchmarks.kernels.{problem.operation}"
            ).CONTESTANTS.items()
        }
        progress.say(problem.title())
        found = Measured(problem, where, measure_all(problem, given.threads, progress.step), titles)
        key = (problem.operation, problem.size, problem.dtype, problem.device)
        kept = [
            one
            for one in kept
            if (one.problem.operation, one.problem.size, one.problem.dtype, one.problem.device) != key
        ] + [found]
        kept.sort(key=lambda one: _OPERATIONS.index(one.problem.operation))
        write(out, kept, command, given.preset)
        progress.say(f"{plain(table(found))}\n")
    print(f"{plain(goals_table(kept))}\n\n{plain(arithmetic_table())}\n\n{out}.md and {out}.json are written")
    return 0


def _chosen(problem: Problem, only: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in problem.contestants if not only or name in only)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--preset", choices=list(PRESETS), default="quick", help="sizes (default: %(default)s)"
    )
    parser.add_argument("--op", choices=_OPERATIONS, help="one loss only (default: all)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these contestants only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
        help="of the inputs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=cores(), metavar="N", help="(default: one a core)")
    parser.add_argument("--out", type=Path, help="files to write, without ending")
    return parser


if __name__ == "__main__":
    sys.exit(main())
