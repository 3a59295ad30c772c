"""When a run is over and what it held: on the CPU the whole process's memory, on a GPU what torch's allocator gave."""

from __future__ import annotations

from benchmarks.turns import memory


def on_gpu(device: str) -> bool:
    """Whether ``device`` ("cpu", "cuda", "cuda:1") is a GPU."""
    return device.startswith("cuda")


def synchronize(device: str) -> None:
    """Wait for what was launched."""
    if on_gpu(device):
        import torch

        torch.cuda.synchronize()


def reset_peak(device: str) -> bool:
    """Set the peak back to what is there now; False where the system can not."""
    if not on_gpu(device):
        return memory.reset_peak()
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return True


def held(device: str) -> int | None:
    """Bytes now; None where the system does not say."""
    if not on_gpu(device):
        return memory.resident()
    import torch

    return torch.cuda.memory_allocated()


def peak(device: str) -> int | None:
    """The most bytes since ``reset_peak``; None where the system does not say."""
    if not on_gpu(device):
        return memory.peak()
    import torch

    return torch.cuda.max_memory_allocated()


def give_back(device: str) -> None:
    """Let other processes have what a GPU keeps for this one's next run."""
    if on_gpu(device):
        import torch

        torch.cuda.empty_cache()
