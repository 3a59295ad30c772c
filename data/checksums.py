"""Checksums of files by block (the door of xxhash): damage is found when a block is first read, without reading more.

A file's digest is that of its blocks' sums, so that the sums of a large file, kept beside it, are checked by the digest
and its blocks by the sums. Against accidents, not against forgers: the sums are XXH3, at several GB/s, of 64 bits.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import xxhash

BLOCK = 1 << 16  # bytes; about what the system reads ahead when a page of a mapped file is touched
AT_A_TIME = 64 * BLOCK


class Summing:
    """Blocks' sums of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._open = xxhash.xxh3_64()
        self._room = BLOCK

    def add(self, data: memoryview) -> None:
        """More bytes."""
        start = 0
        while start < len(data):
            piece = data[start : start + self._room]
            self._open.update(piece)
            start += len(piece)
            self._room -= len(piece)
            if not self._room:
                self._sums.append(self._open.intdigest())
                self._open, self._room = xxhash.xxh3_64(), BLOCK

    def sums(self) -> np.ndarray:
        """After the last byte: (blocks,) uint64, little endian."""
        last = [self._open.intdigest()] if self._room < BLOCK else []
        return np.array(self._sums + last, "<u8")


class CheckedFile:
    """A mapped file whose blocks are compared with their sums when they are first read in this process."""

    def __init__(self, path: Path, digest: str) -> None:
        """ValueError if the sums beside it are not those of ``digest``."""
        self.path = path
        self._sums = np.fromfile(sums_beside(path), "<u8")
        if digest_of(self._sums) != digest:
            raise ValueError(f"{sums_beside(path)}: not the bytes that were written")
        with path.open("rb") as file:
            self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self.mapped)
        self._fine = bytearray(len(self._sums))  # of each block, whether it was compared
        self._blocks = np.frombuffer(self._fine, bool)

    def check(self, start: int, end: int) -> None:
        """ValueError if bytes ``start`` to ``end`` (excluded) are not those that were written."""
        first, last = start // BLOCK, (end - 1) // BLOCK
        if first == last and self._fine[first]:
            return
        for block in np.flatnonzero(~self._blocks[first : last + 1]).tolist():
            self._check(first + block)

    def check_blocks(self, blocks: np.ndarray) -> None:
        """The same for the blocks (n,) of these numbers, in any order."""
        unknown = blocks[~self._blocks[blocks]]
        if len(unknown):
            for block in np.unique(unknown).tolist():
                self._check(block)

    def _check(self, block: int) -> None:
        start = block * BLOCK
        content = self._bytes[start : start + BLOCK]
        if xxhash.xxh3_64_intdigest(content) != int(self._sums[block]):
            raise ValueError(
                f"{self.path}: bytes {start} to {start + len(content)} are not those that were written"
            )
        self._fine[block] = 1


def sums_beside(path: Path) -> Path:
    """Where the sums of a file's blocks are kept."""
    return path.with_name(path.name + ".sums")


def digest_of(sums: np.ndarray) -> str:
    """The digest of a file with these sums."""
    return str(xxhash.xxh3_128_hexdigest(sums.astype("<u8").tobytes()))


def digest_of_file(path: Path) -> str:
    """The digest of a file, which is read; "" if there is none."""
    try:
        with path.open("rb") as file:
            summing = Summing()
            while piece := file.read(AT_A_TIME):
                summing.add(memoryview(piece))
    except FileNotFoundError:
        return ""
    return digest_of(summing.sums())
