"""This rank's microbatches of every step, made ahead of time by worker processes, handed over in shared memory.

Planner (every rank the same) ──▶ rows of this rank's microbatches ──▶ worker: records ──▶ examples ──▶ arrays
              ▲                                                                                          │
              └──── realised tokens, summed over the ranks ◀──── the run ◀──── PackedBatch + tally ◀─────┘
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from data.microbatch import Microbatch, MicrobatchMaker
from data.planner import LAG, Planner
from data.recipe import UserError
from data.slots import Handed, Slots, bytes_needed


class BatchStream:
    """Yields this rank's microbatches, step by step, up to LAG steps ahead of the run.

    Every rank gets the same number of microbatches at every step, the last ones empty where the step's do not
    divide evenly. Give each step's realised tokens to ``planner.feedback`` before asking for the next step.
    """

    def __init__(
        self,
        planner: Planner,
        open_maker: Callable[[], MicrobatchMaker],
        *,
        microbatch_tokens: int,
        rank: int,
        ranks: int,
        workers: int,
        teacher_width: int = 0,
    ) -> None:
        """With ``workers`` 0 the microbatches are made in this process, when they are asked for."""
        self._planner = planner
        self._rows = microbatch_tokens // planner.row_tokens
        total = planner.rows // self._rows
        self.microbatches = -(-total // ranks)
        self._mine = [rank + i * ranks for i in range(self.microbatches)]
        self._workers: _Workers | None = None
        self._maker: MicrobatchMaker | None = None
        if workers:
            at_once = self.microbatches * (LAG + 1)
            slots = Slots(at_once, bytes_needed(microbatch_tokens, teacher_width))
            self._workers = _Workers(workers, open_maker, slots, at_once)
        else:
            self._maker = open_maker()
        self._ahead: deque[list[_Waiting]] = deque()

    def next(self) -> list[Microbatch]:
        """The microbatches of the next step.

        Raises:
            UserError: a worker process was ended, or what it reads is damaged.

        """
        if self._workers is None:
            assert self._maker is not None
            return [self._maker(*planned) for planned in self._planned()]
        while len(self._ahead) <= LAG:
            self._ahead.append([self._workers.submit(*planned) for planned in self._planned()])
        return [self._workers.result(waiting) for waiting in self._ahead.popleft()]

    def _planned(self) -> list[tuple[np.ndarray, tuple[str, ...]]]:
        """Records, and gates that are shut, of each of this rank's microbatches."""
        plan = self._planner.plan()
        return [(plan.rows(m * self._rows, (m + 1) * self._rows), plan.shut) for m in self._mine]

    def close(self) -> None:
        """End the worker processes."""
        if self._workers is not None:
            self._workers.close()


class _Waiting(NamedTuple):
    future: Future[Handed]
    slot: int


class _Workers:
    """Processes that make microbatches, each into a slot that was free when it was asked for."""

    def __init__(
        self, count: int, open_maker: Callable[[], MicrobatchMaker], slots: Slots, at_once: int
    ) -> None:
        self._slots = slots
        self._free = list(range(at_once))
        spawning = multiprocessing.get_context("spawn")
        ends_with, self._open = spawning.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(
            count, mp_context=spawning, initializer=_start_worker, initargs=(open_maker, slots, ends_with)
        )

    def submit(self, records: np.ndarray, shut: tuple[str, ...]) -> _Waiting:
        slot = self._free.pop()
        try:
            return _Waiting(self.pool.submit(_make, records, shut, slot), slot)
        except BrokenProcessPool:
            raise self._ended() from None

    def result(self, waiting: _Waiting) -> Microbatch:
        try:
            found = self._slots.take(waiting.future.result(), waiting.slot)
        except BrokenProcessPool:
            raise self._ended() from None
        self._free.append(waiting.slot)
        return found

    def _ended(self) -> UserError:
        # The pool asks the others to end and waits until they have: with a signal that they leave to the run, and
        # through a queue that stays locked if the one that is gone was reading it.
        self._open.close()
        return UserError(_ENDED)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self._open.close()
        self._slots.close()


_ENDED = (
    "a process that makes batches was ended from outside, often for want of memory: the run stops here. The same"
    " command goes on from the last checkpoint; with fewer 'workers' it needs less memory."
)
_maker: MicrobatchMaker
_slots: Slots


def _start_worker(open_maker: Callable[[], MicrobatchMaker], slots: Slots, ends_with: Connection) -> None:
    """Signals meant for the run are the run's; a worker ends when the run has, or closes its side of a pipe."""
    global _maker, _slots
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_run, args=(ends_with,), daemon=True).start()
    _slots = slots
    _maker = open_maker()


def _end_with_run(ends_with: Connection) -> None:
    ends_with.poll(None)  # nothing is ever sent: it was closed, by the run or by its end, however that came
    os._exit(0)


def _make(records: np.ndarray, shut: tuple[str, ...], slot: int) -> Handed:
    return _slots.put(_maker(records, shut), slot)
