"""A rank that builds one step after another, runs each a few times and says what it took.

python -m benchmarks.growth.worker < requests       lines of JSON, both ways
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.step.worker import problem_of
from benchmarks.turns import memory
from benchmarks.turns.process import answer_requests

_PAD = 1


def main() -> int:
    """Answer requests until there are no more."""
    from training.environment import prepare

    prepare()
    return answer_requests(lambda request: measured(request["problem"], request["steps"]))


def measured(problem: dict[str, Any], steps: int) -> dict[str, Any]:
    """Seconds of each step, what the process grew by, and what this rank's part of the step is."""
    from benchmarks.step.run import RunStep

    gc.collect()
    memory.trim()
    before = memory.resident()
    memory.reset_peak()
    step = RunStep(problem_of(problem))
    step()  # what is made at the first step is made: the optimizer's state, ZeRO's trace
    step()
    seconds, processor = [], []
    for _ in range(steps):
        begin, begin_processor = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
    peak = memory.peak()
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "grown_bytes": None if peak is None or before is None else peak - before,
        **contents_of([each.arrays for each in step.microbatches]),
    }


def contents_of(microbatches: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What is computed of this rank's part of the step: rows as the model lays them out."""
    import torch

    from data.batch import PackedBatch
    from model.attention import SHORT
    from model.layout import BucketedLayout, make_layout

    found: Counter[str] = Counter()
    for arrays in microbatches:
        batch = PackedBatch.from_arrays(arrays)
        layout = make_layout(
            batch.token_ids, batch.document_starts, batch.context_lengths, pad_id=_PAD, dtype=torch.float32
        )
        assert isinstance(layout, BucketedLayout)
        found["tokens"] += len(batch.token_ids)
        found["rows"] += len(layout.order)
        found["predicted"] += len(batch.predicted)
        for bucket in layout.buckets:
            squares = bucket.documents * bucket.length**2
            found["squares"] += squares
            found["short_squares"] += squares if bucket.length <= SHORT else 0
            found["long_rows"] += bucket.rows if bucket.length > SHORT else 0
    return dict(found)


if __name__ == "__main__":
    sys.exit(main())
