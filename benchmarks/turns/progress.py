"""How far a command is, by what its steps took so far: a line that changes, or now and then one on a log."""

from __future__ import annotations

import shutil
import sys
import time

from training.console import CLEAR_LINE, duration

_SECONDS_BETWEEN_LINES = 20  # where the output is no terminal


class Progress:
    """``total`` steps are expected."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._begin = self._said = time.monotonic()
        self._live = sys.stdout.isatty()

    def step(self, what: str) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        left = (now - self._begin) * (self._total - self._done) / self._done
        line = f"{self._done}/{self._total} | {what} | about {duration(left)} left"
        if self._live:
            sys.stdout.write(CLEAR_LINE + line[: shutil.get_terminal_size().columns - 1])
            sys.stdout.flush()
        elif now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            print(line, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        print((CLEAR_LINE if self._live else "") + text, flush=True)
