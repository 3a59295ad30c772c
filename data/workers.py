"""Worker processes of the preparation: pure functions of chunks, their results in the order of the chunks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data.recipe import UserError

K = TypeVar("K")
R = TypeVar("R")


class WorkerEnded(UserError):
    """A worker process was ended from outside."""


class WorkerPool:
    """Worker processes; with one worker, this process does the work itself."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        # spawn: a fork would copy the threads' locks, and torch where the caller has it
        context = multiprocessing.get_context("spawn")
        self._executor = (
            ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
            if workers > 1
            else None
        )

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def in_order(
        self, function: Callable[..., R], tasks: Iterator[tuple[K, tuple[Any, ...]]]
    ) -> Iterator[tuple[K, R]]:
        """(what came with a task, the function of its arguments), in the order of the tasks; a few chunks a worker are
        under way at a time."""
        if self._executor is None:
            for beside, arguments in tasks:
                yield beside, function(*arguments)
            return
        waiting: deque[tuple[K, Future[R]]] = deque()
        try:
            for beside, arguments in tasks:
                waiting.append((beside, self._executor.submit(function, *arguments)))
                if len(waiting) > 2 * self._workers:
                    earliest, result = waiting.popleft()
                    yield earliest, result.result()
            for beside, result in waiting:
                yield beside, result.result()
        except BrokenProcessPool:
            raise _ended() from None


def in_a_process(function: Callable[..., R], *arguments: Any) -> R:
    """The function of its arguments, in a process of its own, whose memory is given back."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_follow_parent) as executor:
        try:
            return executor.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise _ended() from None


def _ended() -> WorkerEnded:
    ended = "a worker process was ended from outside, often for want of memory"
    return WorkerEnded(f"{ended}; the same command goes on from there, with fewer --workers if need be")


def _follow_parent() -> None:
    """A worker leaves interrupts to its parent, and ends when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
