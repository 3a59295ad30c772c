"""A process of a contestant: builds its step, then runs one whenever it is told to.

    python -m benchmarks.step.worker CONTESTANT < requests       lines of JSON, both ways

The first request is the problem, the second its first steps; the answer says what work a step is. Every further one
is a run and its cost, or its parts if it asks for a profile. The memory is the highest resident one of the whole
process during the run, weights and optimizer among it; on a GPU that of torch's allocator.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

from benchmarks.step.contestants import CONTESTANTS
from benchmarks.step.problem import Problem, Step, Texts
from benchmarks.step.profile import profile
from benchmarks.turns import device as on
from benchmarks.turns.process import answer_requests


def main(name: str) -> int:
    """Answer requests until there are no more."""
    step: Step | None = None
    device = "cpu"
    contestant = CONTESTANTS[name]
    if contestant.run:
        from training.environment import prepare

        prepare()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal step, device
        if step is None:
            problem = problem_of(request)
            device = problem.device
            step = contestant.build(problem)
            return {"built": True}
        if request.get("begin"):
            step()  # what is made at the first step is made: the optimizer's state, ZeRO's trace
            step()
            on.give_back(device)
            return step.work._asdict()
        return {"parts": profile(step)} if request.get("profile") else measure(step, device)

    return answer_requests(answer)


def measure(step: Step, device: str) -> dict[str, Any]:
    """Seconds, processor seconds and the peak of one step."""
    gc.collect()
    if on.on_gpu(device):
        step()  # takes the memory again that was given back after the last round
    on.reset_peak(device)
    begin, processor = time.perf_counter(), time.process_time()
    step()
    on.synchronize(device)
    cost = {
        "seconds": time.perf_counter() - begin,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": on.peak(device),
    }
    on.give_back(device)  # the others' models are on the same card
    return cost


def problem_of(values: dict[str, Any]) -> Problem:
    """The problem that JSON made lists of."""
    kept = {**values, "texts": Texts(**values["texts"])}
    names = {name: tuple(kept.get(name, ())) for name in ("tasks", "contestants", "apart")}
    return Problem(**{**kept, **names})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
