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
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.index import Rule
from data.planner import Planner
from data.sampling import Part, Stream
from data.settings.tasks import TasksConfig
from data.shares import Shares
from data.stages import SamplingConfig
from data.tasks import TASKS

STREAMS = 100
WINDOW = 1000  # steps
_STEP = 8192
_ROW = 512
_LONGEST = 128
_KEPT = (
    0.6,
    1.0,
)  # of what is set aside for a stream, so much is really used: drawn for every step and stream
RESULTS = Path("benchmarks/results")

SETTINGS = {
    "constant": {},
    "annealed": {"language_temperature": {"start": 0.7, "end": 0.3, "tokens": _STEP * 2000}},
    "stages": {
        "language_temperature": 0.7,
        "stages": [
            {"tokens": _STEP * 700},
            {"tokens": _STEP * 800, "language_temperature": 0.3},
            {"language_temperature": {"start": 0.3, "end": 0.0, "tokens": _STEP * 1000}},
        ],
    },
}


class Course(NamedTuple):
    """What every step held and was due."""

    tokens: np.ndarray  # (steps, S)
    due: np.ndarray  # (steps, S), of the same sum

    def off(self, window: int | None = None) -> float:
        """The distance of the worst stream from its budget in the worst window, else over the run, in points."""
        ahead = np.vstack([np.zeros(self.due.shape[1]), np.cumsum(self.tokens - self.due, axis=0)])
        total = np.concatenate([[0.0], np.cumsum(self.tokens.sum(1))])
        steps = window or len(self.tokens)
        return float(
            100 * (np.abs(ahead[steps:] - ahead[:-steps]).max(1) / (total[steps:] - total[:-steps])).max()
        )


def skewed_streams(count: int = STREAMS, seed: int = 0, scale: int = 1) -> list[Stream]:
    """Streams of one text a record."""
    random = np.random.default_rng(seed)
    streams = []
    for number in range(count):
        size, mean = int(scale * 10 ** random.uniform(1.5, 4.5)), random.uniform(4, 90)
        lengths = (random.gamma(4.0, mean / 4, size) + 1).clip(1, _LONGEST - 2).astype(np.int32)
        part, language = Part(0, (Rule(0, 1, size),), lengths, int(lengths.sum())), f"l{number:03}"
        streams.append(Stream(f"mmlm/{language}", TASKS["mmlm"], (language,), (part,)))
    return streams


def planned(streams: list[Stream], sampling: SamplingConfig, steps: int) -> Course:
    """The course of the planner; a part of what it sets aside is never used, as in a run."""
    planner = Planner(
        streams,
        Shares(streams, TasksConfig.model_validate({"mmlm": {}}), sampling),
        step_tokens=_STEP,
        row_tokens=_ROW,
        maximum_tokens=_LONGEST,
        seed=1,
    )
    random, tokens, due = np.random.default_rng(1), [], []
    for step in range(1, steps + 1):
        shares = planner.mix(step).shares
        plan = planner.plan()
        held = (plan.planned * random.uniform(*_KEPT, len(streams))).astype(np.int64)
        planner.feedback(step, held)
        tokens.append(held)
        due.append(shares * held.sum())
    return Course(np.array(tokens), np.array(due))


def blended(streams: list[Stream], sampling: SamplingConfig, steps: int) -> Course:
    """The course of a blend by samples: always the stream that is furthest behind its share of the samples."""
    shares_of = Shares(streams, TasksConfig.model_validate({"mmlm": {}}), sampling)
    rooms = [stream.room(np.arange(len(stream)), 0, 0, _LONGEST).tolist() for stream in streams]
    nothing = np.zeros(len(streams), bool)
    behind, drawn = np.zeros(len(streams)), [0] * len(streams)
    random, tokens, due, spent = np.random.default_rng(1), [], [], 0
    for _ in range(steps):
        shares = shares_of(spent, nothing, {}).shares
        step = np.zeros(len(streams), np.int64)
        filled = 0
        while filled < _STEP:
            behind += shares
            number = int(behind.argmax())
            behind[number] -= 1
            room = rooms[number][drawn[number] % len(rooms[number])]
            drawn[number] += 1
            step[number] += room
            filled += room
        spent += filled
        held = (step * random.uniform(*_KEPT, len(streams))).astype(np.int64)
        tokens.append(held)
        due.append(shares * held.sum())
    return Course(np.array(tokens), np.array(due))


def cost(step_tokens: int, rounds: int = 5) -> tuple[float, int]:
    """Process time of planning a step after the first, in ms, the median; and its records."""
    streams = skewed_streams(scale=30)
    planner = Planner(
        streams,
        Shares(streams, TasksConfig.model_validate({"mmlm": {}}), SamplingConfig()),
        step_tokens=step_tokens,
        row_tokens=4096,
        maximum_tokens=512,
        seed=1,
    )
    took, records = [], 0
    for step in range(1, rounds + 2):
        begin = time.process_time()
        plan = planner.plan()
        took.append(1000 * (time.process_time() - begin))
        planner.feedback(step, plan.planned)
        records = len(plan.records)
    return float(np.median(took[1:])), records


def memory(records: int) -> tuple[float, float]:
    """Of a process that plans over ``records`` records: its own memory in MB, and ms of a plan a million steps on.

    The lengths are a mapped column of zeros (a file of that size without content).
    """
    code = "import sys; from benchmarks.planner import plan_of_many; print(*plan_of_many(int(sys.argv[1])))"
    found = subprocess.run(
        [sys.executable, "-c", code, str(records)], check=True, capture_output=True, text=True
    )
    megabytes, milliseconds = map(float, found.stdout.split())
    return megabytes, milliseconds


def plan_of_many(records: int) -> tuple[float, float]:
    """What ``memory`` measures, in this process: what is added to what it held before."""
    before = _own_bytes()
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * records)
        lengths = np.asarray(np.memmap(file, np.int32, "r"))
    each = records // STREAMS
    streams = [
        Stream(
            f"mmlm/l{n:03}", TASKS["mmlm"], (f"l{n:03}",), (Part(0, (Rule(n * each, 1, each),), lengths, 1),)
        )
        for n in range(STREAMS)
    ]
    planner = Planner(
        streams,
        Shares(streams, TasksConfig.model_validate({"mmlm": {}}), SamplingConfig()),
        step_tokens=1 << 18,
        row_tokens=4096,
        maximum_tokens=512,
        seed=1,
    )
    planner.plan()
    taken = np.full(STREAMS, 1310 * 1_000_000)  # the records of a stream in a million such steps
    state = planner._state._replace(step=1_000_001, cursors=taken, in_flight=())
    begin = time.process_time()
    planner.plan_from(state)
    return (_own_bytes() - before) / 1e6, 1000 * (time.process_time() - begin)


def _own_bytes() -> int:
    """Memory that is no mapped file's."""
    lines_of_kernel = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines_of_kernel if line.startswith("Anonymous"))


def lines(courses: dict[str, dict[str, Course]]) -> Iterator[str]:
    """The table, in Markdown."""
    yield f"| sampling | who | worst window of {WINDOW:,} steps, points | whole run, points |"
    yield "|---|---|---:|---:|"
    for setting, of_setting in courses.items():
        for who, course in of_setting.items():
            yield f"| {setting} | {who} | {course.off(WINDOW):.4f} | {course.off():.4f} |"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500, help=f"of each run, {WINDOW} at least")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the results ({RESULTS})")
    given = parser.parse_args()
    if given.steps < WINDOW:
        parser.error(f"--steps must be {WINDOW} at least")
    streams = skewed_streams()
    courses: dict[str, dict[str, Course]] = {}
    for name, values in SETTINGS.items():
        sampling = SamplingConfig.model_validate(values)
        courses[name] = {
            "planner": planned(streams, sampling, given.steps),
            "blend by samples": blended(streams, sampling, given.steps),
        }
    times = {tokens: cost(tokens) for tokens in (1 << 14, 1 << 18, 1 << 20, 1 << 22)}
    held = {records: memory(records) for records in (10**5, 10**7, 10**9)}
    text = "\n".join(
        [
            f"{STREAMS} streams, {given.steps:,} steps of {_STEP:,} tokens.\n",
            *lines(courses),
            "\n| tokens of a step | records | planning, ms of process time |",
            "|---:|---:|---:|",
            *(f"| {tokens:,} | {records:,} | {ms:.1f} |" for tokens, (ms, records) in times.items()),
            "\n| records in all | own memory of what plans them, MB | a plan after a million steps, ms |",
            "|---:|---:|---:|",
            *(f"| {records:,} | {mb:.1f} | {ms:.1f} |" for records, (mb, ms) in held.items()),
        ]
    )
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "planner.md").write_text(text + "\n", encoding="utf-8")
    found = {
        setting: {who: {"window": c.off(WINDOW), "run": c.off()} for who, c in of.items()}
        for setting, of in courses.items()
    }
    (given.out / "planner.json").write_text(
        json.dumps({"points": found, "milliseconds": times, "memory": held}, indent=1) + "\n"
    )
    _plot(courses, given.out / "planner.svg")


def _plot(courses: dict[str, dict[str, Course]], path: Path) -> None:
    """The worst stream's distance from its budget over the run so far, step by step."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(courses), sharey=True)
    for axes, (setting, of_setting) in zip(panels, courses.items(), strict=True):
        for (who, course), style in zip(of_setting.items(), ("-", "--"), strict=True):
            ahead = np.abs(np.cumsum(course.tokens - course.due, axis=0)).max(1)
            points = 100 * ahead / np.cumsum(course.tokens.sum(1))
            steps = np.arange(1, len(points) + 1)
            axes.semilogy(steps[9::10], points[9::10], style, color="black", label=who)
        axes.axhline(0.1, color="0.6", linestyle=":", linewidth=1)
        axes.set_title(setting, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    panels[0].set_ylabel("worst stream off its budget, points", fontsize=8)
    panels[0].legend(fontsize=8)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "calque"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
