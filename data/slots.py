"""Finished microbatches handed over by worker processes in memory that both sides map.

worker: microbatch ──▶ its arrays, one copy into the slot of the job ──▶ [slot] ──▶ one copy out ──▶ run

What describes the arrays (a kilobyte or two) goes the way of all results; the arrays do not. The memory has no name, so
that nothing of it is left behind however the processes end.
"""

from __future__ import annotations

import mmap
import os
import pickle
from multiprocessing import reduction
from typing import Any, NamedTuple

from data.microbatch import Microbatch

_BYTES_A_TOKEN = (
    512  # the most of all columns together, the generation's included (but for the teacher's vectors)
)


def bytes_needed(tokens: int, teacher_width: int) -> int:
    """The most that a microbatch of ``tokens`` can take: a document has two or more. Only what is used is spent."""
    return tokens * (_BYTES_A_TOKEN + 2 * teacher_width)


class Handed(NamedTuple):
    """A microbatch but for its arrays, which lie in a slot."""

    header: bytes
    sizes: list[int]  # of the arrays, in bytes


class Slots:
    """``count`` stretches of ``size`` bytes; passed on to processes that are being started, and only then."""

    def __init__(self, count: int, size: int) -> None:
        self._size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._open(os.memfd_create("microbatches"), count * self._size)
        os.ftruncate(self._file, self._bytes)
        self._memory = mmap.mmap(self._file, self._bytes)

    def _open(self, file: int, size: int) -> None:
        self._file, self._bytes = file, size

    def __getstate__(self) -> tuple[Any, int, int]:
        return reduction.DupFd(self._file), self._bytes, self._size

    def __setstate__(self, state: tuple[Any, int, int]) -> None:
        file, size, self._size = state
        self._open(file.detach(), size)
        self._memory = mmap.mmap(self._file, self._bytes)

    def put(self, microbatch: Microbatch, slot: int) -> Handed:
        """Copy the arrays of ``microbatch`` into ``slot``."""
        buffers: list[pickle.PickleBuffer] = []
        header = pickle.dumps(microbatch, protocol=5, buffer_callback=buffers.append)
        place, sizes = slot * self._size, []
        for buffer in buffers:
            part = buffer.raw()
            if place + len(part) > (slot + 1) * self._size:
                raise ValueError(f"a microbatch needs more than the {self._size} bytes of its slot")
            self._memory[place : place + len(part)] = part
            place += len(part) + -len(part) % 8
            sizes.append(len(part))
        return Handed(header, sizes)

    def take(self, handed: Handed, slot: int) -> Microbatch:
        """The microbatch with its arrays copied out of ``slot``, which is free again."""
        lengths = [size + -size % 8 for size in handed.sizes]
        begin = slot * self._size
        own = memoryview(bytearray(self._memory[begin : begin + sum(lengths)]))
        parts, place = [], 0
        for size, length in zip(handed.sizes, lengths, strict=True):
            parts.append(own[place : place + size])
            place += length
        found: Microbatch = pickle.loads(handed.header, buffers=parts)
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self._file)
