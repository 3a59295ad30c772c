"""What a plan costs: processor time by the tokens of a step, memory and time by the records that there are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.planner.courses import STREAMS, skewed_streams
from data.index import Rule
from data.planner import Planner
from data.sampling import Part, Stream
from data.settings.tasks import TasksConfig
from data.shares import Shares
from data.stages import SamplingConfig
from data.tasks import TASKS


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
    code = (
        "import sys; from benchmarks.planner.cost import plan_of_many; print(*plan_of_many(int(sys.argv[1])))"
    )
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
