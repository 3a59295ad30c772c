"""A process that measures one contestant: told the problem, it says how exact it is; told "run", what a run costs.

    python -m benchmarks.kernels.worker OPERATION CONTESTANT < requests        lines of JSON, both ways

A process of its own, because only the peak of a whole process is what a loss really takes: the highest resident
memory that Linux saw during the run, less what was resident before (on a GPU: what torch's allocator saw). It stays
for the next round, compiled and warm, while the others run theirs.
"""

from __future__ import annotations

import gc
import importlib
import statistics
import sys
import time
from typing import Any, Final

from benchmarks.kernels.problem import Outcome, Problem, Run
from benchmarks.turns import device as on
from benchmarks.turns import memory
from benchmarks.turns.process import answer_requests

RUNS_ON_GPU: Final = 5


def main(operation: str, contestant: str) -> int:
    """The first request names the problem and is answered with the errors, every further one with a run's cost."""
    importlib.import_module(f"benchmarks.kernels.{operation}")  # while others do the same
    run: Run | None = None
    device = "cpu"

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal run, device
        if run is not None:
            return measure(run, device)
        problem = Problem(**request)
        device = problem.device
        run, found = prepare(problem, contestant)
        return found

    return answer_requests(answer)


def prepare(problem: Problem, contestant: str) -> tuple[Run, dict[str, Any]]:
    """The contestant's run, and its error on a small problem (which warms it up too)."""
    operation = importlib.import_module(f"benchmarks.kernels.{problem.operation}")
    _, contestant_of = operation.CONTESTANTS[contestant]
    small = operation.make(problem, small=True)
    outcome = contestant_of(small)()
    answer: dict[str, Any] = {"sees_peak": on.reset_peak(problem.device)}
    if outcome.loss is not None:
        answer |= errors(outcome, operation.truth(small))
    del small, outcome
    run: Run = contestant_of(operation.make(problem))
    if problem.rounds > 1:
        run()  # what is compiled is compiled for its size; a single round is of a size that is not run twice
    return run, answer


def errors(outcome: Outcome, truth: Outcome) -> dict[str, float]:
    """How far the loss is off, relative to the true one, and the worst gradient, relative to its norm."""
    off = [
        float((value.double() - true).norm() / true.norm())
        for value, true in zip(outcome.gradients, truth.gradients, strict=True)
        if true.norm() > 0
    ]
    return {
        "loss_error": abs(float(outcome.loss.double() - truth.loss) / float(truth.loss)),
        "gradient_error": max(off),
    }


def measure(run: Run, device: str) -> dict[str, Any]:
    """Seconds, processor seconds and extra bytes of one forward and backward, gradients held at the end.

    On a GPU the seconds are the median of several after one that is not counted: its clock rises with its work.
    """
    gc.collect()
    memory.trim()
    if on.on_gpu(device):
        run()
    on.reset_peak(device)
    before = on.held(device)
    seconds, processor = [], time.process_time()
    outcome: Outcome | None = None
    for _ in range(RUNS_ON_GPU if on.on_gpu(device) else 1):
        outcome = None  # the gradients of the run before are not this one's
        begin = time.perf_counter()
        outcome = run()
        on.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    processor = (time.process_time() - processor) / len(seconds)
    peak = on.peak(device)
    assert outcome is not None
    of_gradients = [gradient.numel() * gradient.element_size() for gradient in outcome.gradients]
    on.give_back(device)
    return {
        "seconds": statistics.median(seconds),
        "processor_seconds": processor,
        "extra_bytes": None if peak is None or before is None else peak - before,
        "gradient_bytes": of_gradients,
    }


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
