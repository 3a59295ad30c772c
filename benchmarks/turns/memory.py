"""The resident memory of this process and its peak, as Linux counts them."""

from __future__ import annotations

import ctypes
from pathlib import Path


def reset_peak() -> bool:
    """Set the peak back to what is there now; False where the system can not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident() -> int | None:
    """Bytes now; None where the system does not say."""
    return _status("VmRSS")


def peak() -> int | None:
    """The most bytes since ``reset_peak``; None where the system does not say."""
    return _status("VmHWM")


def trim() -> None:
    """Give back what the C library keeps of freed memory, so that it does not hide what a run takes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))
