"""Do the tokens follow the budgets, beside a blend that counts samples? And what does a plan cost?

    python -m benchmarks.planner [--steps N] [--out FOLDER]

A hundred skewed streams of made-up lengths: sizes over three orders of magnitude, mean lengths from a few tokens to a
hundred, shares of a heavy tail. The planner and the blend get the same streams and the same shares at every step. The
blend draws, sample by sample, the stream that is furthest behind its share of the samples. Printed is how far the
tokens of the worst stream are from its budget, in points of all tokens: over the worst window of consecutive steps, and
over the run. Prints one table, writes it with the plot into the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.planner import WINDOW

RESULTS = Path("benchmarks/results")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=2500, help=f"of each run, {WINDOW} at least")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the results ({RESULTS})")
    given = parser.parse_args()
    if given.steps < WINDOW:
        parser.error(f"--steps must be {WINDOW} at least")
    from benchmarks.planner.cost import cost, memory
    from benchmarks.planner.courses import SETTINGS, blended, planned, skewed_streams
    from benchmarks.planner.report import write
    from data.stages import SamplingConfig

    streams = skewed_streams()
    courses = {}
    for name, values in SETTINGS.items():
        sampling = SamplingConfig.model_validate(values)
        courses[name] = {
            "planner": planned(streams, sampling, given.steps),
            "blend by samples": blended(streams, sampling, given.steps),
        }
    times = {tokens: cost(tokens) for tokens in (1 << 14, 1 << 18, 1 << 20, 1 << 22)}
    held = {records: memory(records) for records in (10**5, 10**7, 10**9)}
    print(write(courses, times, held, given.steps, given.out))


if __name__ == "__main__":
    main()
