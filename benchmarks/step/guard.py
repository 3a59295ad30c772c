"""Command: compare what a step costs with a table that is checked in; the ratios, never the times.

    python -m benchmarks.step.guard [--update]

Runs the small preset: contestants take turns over many rounds of a tiny step, and of each pair below the median ratio
of processor time is compared. Another contestant of the same run is the measure, so that a slow machine is slow for
both. Every process has one thread: with two each small operation waits for the one whose core another process has
taken, and attention, which is many of them, took two thirds of a step on a machine that was shared. A ratio that is
more than a quarter below that of the table fails; it is measured once more before.

Products and the rest of a step are not faster by the same factor on another kind of processor, so the table has rows
for each that was measured (--update adds this one); on any other there is nothing to compare with, which is told.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.step.problem import PRESETS
from benchmarks.turns.machine import kind_of_processor

if TYPE_CHECKING:
    from benchmarks.step.rounds import Result

TABLE: Final = Path("benchmarks/step/guard.json")
ALLOWED: Final = 0.75  # of the table's ratio
_PAIRS: Final = (
    ("masked", "one", "padded"),
    ("masked", "one", "products"),
    ("masked", "zero3", "ddp"),
    ("alignment", "one", "sentence_transformers"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The status is 0 if nothing became slower, 1 if something did."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step.guard", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--update", action="store_true", help=f"write what is measured to {TABLE}")
    given = parser.parse_args(arguments)
    tables: dict[str, dict[str, float]] = json.loads(TABLE.read_text(encoding="utf-8"))
    kind, found = kind_of_processor(), measured()
    if given.update:
        tables[kind] = {name: round(ratio, 3) for name, ratio in found.items()}
        TABLE.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
        return 0
    if kind not in tables:
        for name, ratio in found.items():
            print(f"{name:42} {ratio:6.2f} x")
        print(
            f"{TABLE} has no ratios of this kind of processor ({kind}): nothing compared; --update adds these"
        )
        return 0
    table = tables[kind]
    slower = regressions(found, table)
    if slower:
        print(f"slower: {', '.join(slower)}; measured once more", flush=True)
        again = measured()
        found = {name: max(found[name], again[name]) for name in found}
        slower = regressions(found, table)
    for name, ratio in found.items():
        verdict = "SLOWER" if name in slower else "ok"
        print(f"{name:42} {ratio:6.2f} x, table {table[name]:6.2f} x  {verdict}")
    return 1 if slower else 0


def measured() -> dict[str, float]:
    """How many times as fast, of each pair."""
    from benchmarks.step.rounds import measure_all

    found: dict[str, float] = {}
    for problem in PRESETS["small"]:
        results = {result.contestant: result for result in measure_all(problem, 1, lambda _: None)}
        found |= ratios("alignment" if problem.aligns else "masked", results)
    return found


def ratios(kind: str, results: Mapping[str, Result]) -> dict[str, float]:
    """Of the pairs of problems of this kind."""
    found = {}
    for of, one, other in _PAIRS:
        if of == kind:
            for name in (one, other):
                if results[name].unavailable:
                    raise SystemExit(f"{name}: {results[name].unavailable}")
            found[f"{kind}: {one} against {other}"] = results[one].processor_ratio(results[other])
    return found


def regressions(found: Mapping[str, float], table: Mapping[str, float]) -> list[str]:
    """Names whose ratio is less than ALLOWED of the table's."""
    return [name for name, ratio in found.items() if ratio < ALLOWED * table[name]]


if __name__ == "__main__":
    sys.exit(main())
