"""A process that runs one contestant: told a folder it gets ready, told seconds it makes batches for so long.

    python -m benchmarks.data.worker CONTESTANT < requests        lines of JSON, both ways

It keeps its place between requests, while the others have their turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.contestants import CONTESTANTS
from benchmarks.turns.process import Unavailable, answer_requests


class _Worker:
    """A contestant between its turns."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._batches: Iterator[int] = iter(())

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a request for getting ready, or for a turn, found."""
        if "seconds" in request:
            return measure(self._batches, request["seconds"])
        try:
            self._batches = CONTESTANTS[self._name].start(Path(request["folder"]))
            measure(self._batches, request["warm"])
        except ImportError as error:
            python = f"--python {self._name.split('-')[0]}=PATH"
            raise Unavailable(f"{error}; name an interpreter that has it: {python}") from None
        return {}


def measure(batches: Iterator[int], seconds: float) -> dict[str, float]:
    """Tokens, and the processor's time (of all threads) and the clock's that they took, ``seconds`` at least."""
    tokens, begin, processor = 0, time.perf_counter(), time.process_time()
    while time.process_time() - processor < seconds:
        tokens += next(batches)
    return {
        "tokens": tokens,
        "processor_seconds": time.process_time() - processor,
        "seconds": time.perf_counter() - begin,
    }


if __name__ == "__main__":
    sys.exit(answer_requests(_Worker(sys.argv[1])))
