"""The clock of a start: how long each part took, from the launch of the run to the end of its first step."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


class StartUp:
    """Parts of a start, one after the other; of this process, which on the first rank is the one that tells.

    It begins where the launcher began: launchers are Python too, and were given the program as an argument. What runs
    on another machine, or is no Python (ssh, srun), is not seen.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.busy: dict[str, float] = {}  # of them this process' processor: the rest was waiting
        self._worked = 0.0
        pid = os.getpid()
        born = _born(pid)
        launched = _born(_first_of_launch(pid))
        if born is None or launched is None:  # a system without /proc
            born = launched = _now()
        self._launched = self._last = launched
        self._end("launcher", born)

    def ends(self, part: str) -> None:
        """``part`` has ended now; it began where the one before it ended. Only its first time counts."""
        if part not in self.seconds:
            self._end(part, _now())

    @property
    def total(self) -> float:
        """Seconds from the launch to the end of the last part."""
        return self._last - self._launched

    def _end(self, part: str, now: float) -> None:
        self.seconds[part] = now - self._last
        self._last = now
        if part != "launcher":
            worked = time.process_time()
            self.busy[part] = worked - self._worked
            self._worked = worked


def _now() -> float:
    """Seconds since the machine was started, as /proc counts them."""
    return time.clock_gettime(
        time.CLOCK_BOOTTIME if hasattr(time, "CLOCK_BOOTTIME") else time.CLOCK_MONOTONIC
    )


def _born(pid: int) -> float | None:
    """When a process began, to a hundredth of a second."""
    fields = _stat(pid)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else None


def _first_of_launch(pid: int) -> int:
    """The process that began the launch which ``pid`` belongs to; itself, if there was no launcher."""
    program = sys.argv[0]
    while fields := _stat(pid):
        parent = int(fields[1])
        try:
            words = Path(f"/proc/{parent}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return pid
        if "python" not in Path(words[0]).name or program not in words[1:]:
            return pid
        pid = parent
    return pid


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
