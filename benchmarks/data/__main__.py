"""Command: tokens a second and core from a token store to masked batches, beside what others have for it.

    python -m benchmarks.data [--rounds N] [--seconds S] [--only NAME ...] [--python NAME=INTERPRETER ...]

The training texts of a recipe's store (recipes/demo.yaml), with its tokenizer, in every contestant's own form; each a
process of its own on one core, and each in turn, so that whatever else the machine does falls on all of them. Counted
are tokens of texts, no padding, by processor time. Megatron-Core and MosaicML streaming are no dependencies: name an
interpreter that has them (with torch and transformers). Prints one table and writes it: benchmarks/results/data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.data.contestants import CONTESTANTS, OTHERS, OURS
from benchmarks.tables import markdown, plain
from benchmarks.turns.machine import machine
from benchmarks.turns.process import Process
from data.recipe import UserError

RESULTS = Path("benchmarks/results/data")
_WARM = 20.0  # seconds of processor time before the first that is timed: caches fill, as in a run of days
GOAL = 3.0  # times the best of the others that are alike


class Result(NamedTuple):
    """What was found of one contestant."""

    name: str
    speeds: list[float]  # tokens a second of processor time, one a round
    unavailable: str = ""

    def median(self) -> float:
        """Tokens a second and core."""
        return statistics.median(self.speeds)


def measure(
    names: Sequence[str],
    folder: Path,
    rounds: int,
    seconds: float,
    pythons: Mapping[str, str],
    warm: float = _WARM,
) -> list[Result]:
    """Rounds in which each contestant runs once, after ``warm`` seconds that are not counted."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.getcwd()
    results = {name: Result(name, []) for name in names}
    processes: dict[str, Process] = {}
    try:
        for name in names:
            python = pythons.get(name.split("-")[0], sys.executable)
            processes[name] = Process("benchmarks.data.worker", [name], environment, python)
            answer = processes[name].ask({"folder": str(folder), "warm": warm})
            results[name] = results[name]._replace(unavailable=answer.get("unavailable", ""))
            print(f"{name}: {results[name].unavailable or 'ready'}", flush=True)
        for number in range(rounds):
            for name, result in results.items():
                if result.unavailable:
                    continue
                answer = processes[name].ask({"seconds": seconds})
                if "unavailable" in answer:
                    results[name] = result._replace(unavailable=answer["unavailable"])
                    continue
                result.speeds.append(answer["tokens"] / answer["processor_seconds"])
            print(f"round {number + 1} of {rounds}", flush=True)
    finally:
        for process in processes.values():
            process.close()
    return list(results.values())


def best_of_others(results: Sequence[Result]) -> Result | None:
    """The fastest of those that do the same work."""
    found = [result for result in results if result.name in OTHERS and not result.unavailable]
    return max(found, key=Result.median, default=None)


def times(result: Result, other: Result) -> float:
    """How many times as fast as ``other``: the median over the rounds."""
    return statistics.median(mine / its for mine, its in zip(result.speeds, other.speeds, strict=True))


def table(results: Sequence[Result]) -> list[list[str]]:
    """Rows of cells, the first one the head."""
    best = best_of_others(results)
    rows = [["", "tokens/s and core", "spread", "times the best other"]]
    for result in results:
        title = CONTESTANTS[result.name].title
        if result.unavailable:
            rows.append([title, f"- ({result.unavailable})", "", ""])
            continue
        spread = (max(result.speeds) - min(result.speeds)) / result.median()
        ratio = f"{times(result, best):.2f}" if best else "-"
        if not CONTESTANTS[result.name].alike:
            ratio = "other work"
        rows.append([title, f"{result.median():,.0f}", f"{100 * spread:.0f} %", ratio])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; the status is 2 for what only the person can mend."""
    given = _parser().parse_args(arguments)
    names = [name for name in CONTESTANTS if not given.only or name in given.only]
    pythons = dict(one.split("=", 1) for one in given.python)
    from benchmarks.data.texts import write_texts

    with tempfile.TemporaryDirectory() as name:
        try:
            texts = write_texts(given.recipe, Path(name))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        results = measure(names, Path(name), given.rounds, given.seconds, pythons)
    where = f"{machine('cpu', 1)}; {given.rounds} rounds of {given.seconds:g} s"
    rows = table(results)
    page = [
        "# From a token store to batches", f"{texts}. {where}.", markdown(rows), _goal(results),
    ]  # fmt: skip
    print(f"\n{texts}\n{where}\n\n{plain(rows)}\n\n{_goal(results)}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    values = {"texts": texts, "machine": where, "results": [result._asdict() for result in results]}
    given.out.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 0


def _goal(results: Sequence[Result]) -> str:
    best = best_of_others(results)
    found = {result.name: result for result in results if not result.unavailable}
    if best is None or "calque-tasks" not in found:
        return f"Goal: {GOAL:g} times the best of the others; not measured."
    ratios = {name: times(found[name], best) for name in OURS if name in found}
    listed = ", ".join(f"{CONTESTANTS[name].title} {ratio:.2f}" for name, ratio in ratios.items())
    met = "met" if min(ratios.values()) >= GOAL else "not met by all"
    return f"Goal: {GOAL:g} times the best of the others ({CONTESTANTS[best.name].title}): {met}. {listed}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"), help="whose store is read")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="of processor time, each in a round"
    )
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=[], metavar="NAME")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=INTERPRETER",
        help="megatron=..., streaming=...",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="files to write, without ending")
    return parser


if __name__ == "__main__":
    sys.exit(main())
