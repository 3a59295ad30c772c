"""What times depend on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(device: str, threads: int) -> str:
    """The processor and torch. Raises ValueError for a device that is not there."""
    import torch

    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(
                f"{device}: torch sees no CUDA device here; leave --device, or a preset for a GPU, away for the CPU"
            )
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name}, {threads} threads, torch {torch.__version__}"


def kind_of_processor() -> str:
    """What ratios of times depend on: the processor's name, its vector instructions that torch uses, its cores."""
    import torch

    name = machine("cpu", cores()).partition(",")[0]
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {cores()} cores"
