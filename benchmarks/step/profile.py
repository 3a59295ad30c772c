"""Where a step's time goes, part by part, as torch's profiler saw one step of the first rank.

An operation belongs to the innermost part that it or one of those that called it names: a product inside of attention
is attention. What no operation accounts for is Python.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, Final

from benchmarks.step.problem import Step

# Beginnings of the names of operations, and the part that they are.
_PARTS: Final = {
    "attention": ("_ShortDocuments", "aten::scaled_dot_product", "aten::_scaled_dot_product"),
    "head and its loss": ("_TiledVocabularyLoss", "TiledVocabularyLoss"),
    "other losses": ("_Solution", "_Explicit", "_InBatch", "aten::segment_reduce", "aten::_segment_reduce"),
    "optimizer and norm of the gradient": (
        "Optimizer.step", "aten::_fused_adamw_", "aten::linalg_vector_norm", "aten::_foreach_norm",
    ),
    "communication": ("c10d::", "gloo:"),
    "ZeRO's hooks and waits": ("PreBackwardFunction", "PostBackwardFunction", "PreForward", "PostForward"),
    "norms": ("aten::native_layer_norm", "aten::layer_norm"),
    "linear layers": ("aten::addmm", "aten::mm", "aten::linear", "LinearFunctionForZeroStage3"),
    "GELU": ("aten::gelu",),
    "tables": ("aten::embedding",),
}  # fmt: skip
OTHER: Final = "copies and other operations"
PYTHON: Final = "Python"


def profile(step: Step) -> dict[str, float]:
    """Seconds of each part, of one step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU]) as seen:
        begin = time.perf_counter()
        step()
        wall = time.perf_counter() - begin
    return parts_of(seen.events(), wall)


def parts_of(events: Any, wall: float) -> dict[str, float]:
    """The self times of ``events`` by part, and what is left of ``wall`` seconds."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        seconds[_part(event)] += event.self_cpu_time_total / 1e6
    seconds[PYTHON] = max(0.0, wall - sum(seconds.values()))
    return dict(sorted(seconds.items(), key=lambda part: -part[1]))


def _part(event: Any) -> str:
    found = event
    while found is not None:
        for part, beginnings in _PARTS.items():
            if found.name.startswith(beginnings):
                return part
        found = found.cpu_parent
    return OTHER
