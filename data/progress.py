"""Progress of a long piece of work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts bytes, or something else, up to a total; a context manager."""

    def __init__(self, name: str, total: int, unit: str = "B") -> None:
        self.name, self.total, self.done = name, total, 0
        self._skipped = 0
        self._started = self._last = time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, desc=name, unit=unit, unit_scale=True, leave=False) if terminal else None
        )

    def skip(self, count: int) -> None:
        """`count` were done by an earlier process: they say nothing about the speed of this one."""
        self.done += count
        self._skipped += count
        if self._bar is not None:
            self._bar.initial += count
            self._bar.update(count)

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES and self.done > self._skipped:
            self._last = now
            left = (now - self._started) * (self.total - self.done) / (self.done - self._skipped)
            share = 100 * self.done / max(self.total, 1)
            print(f"{self.name}: {share:.0f} %, about {left:.0f} s left", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
