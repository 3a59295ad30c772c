"""Writing an Arrow file of one record batch from files of its columns, and the sums of its blocks beside it.

The columns are mapped, so that pyarrow can describe them; their pages are given back as they are written, so that a
file of any size passes through a few megabytes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from data.checksums import AT_A_TIME, Summing, digest_of, sums_beside


class MappedColumns:
    """Files of numbers, mapped; a context manager."""

    def __init__(self) -> None:
        self._maps: list[tuple[int, mmap.mmap]] = []

    def __enter__(self) -> MappedColumns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._maps.clear()  # unmapped with the last array that looks at them

    def buffer(self, path: Path) -> pa.Buffer | None:
        """The content of a file; empty files can not be mapped."""
        if not path.stat().st_size:
            return pa.py_buffer(b"")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        buffer = pa.py_buffer(mapped)
        self._maps.append((buffer.address, mapped))
        return buffer

    def numbers(self, path: Path, kind: Any) -> pa.Array:
        """A column of the numbers in a file."""
        count = path.stat().st_size // np.dtype(kind.to_pandas_dtype()).itemsize
        return pa.Array.from_buffers(kind, count, [None, self.buffer(path)])

    def lists(self, ends: Path, values: Path, kind: Any) -> pa.Array:
        """A column of lists; ``ends`` holds int64 numbers, one more than there are lists."""
        count = ends.stat().st_size // 8 - 1
        inner = self.numbers(values, kind)
        return pa.Array.from_buffers(pa.large_list(kind), count, [None, self.buffer(ends)], children=[inner])

    def texts(self, ends: Path, values: Path) -> pa.Array:
        """A column of texts in UTF-8."""
        count = ends.stat().st_size // 8 - 1
        return pa.Array.from_buffers(pa.large_utf8(), count, [None, self.buffer(ends), self.buffer(values)])

    def write(self, path: Path, columns: Mapping[str, pa.Array]) -> str:
        """Write the file and its sums, to the disk; returns its digest."""
        batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        with path.open("wb") as file:
            sink = _Sink(file, self._maps)
            with pa.ipc.new_file(pa.PythonFile(sink, "w"), batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        sums = sink.summing.sums()
        with sums_beside(path).open("wb") as file:
            file.write(sums.tobytes())
            os.fsync(file.fileno())
        return digest_of(sums)


class _Sink:
    """What pyarrow writes to: sums up, writes, and lets go of the mapped pages."""

    closed = False

    def __init__(self, file: Any, maps: Sequence[tuple[int, mmap.mmap]]) -> None:
        self._file, self._maps = file, maps
        self._end = 0
        self.summing = Summing()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        address = np.frombuffer(view, np.uint8).__array_interface__["data"][0] if len(view) else 0
        base, mapped = next(
            ((base, mapped) for base, mapped in self._maps if base <= address < base + len(mapped)),
            (0, None),
        )
        for start in range(0, len(view), AT_A_TIME):
            piece = view[start : start + AT_A_TIME]
            self.summing.add(piece)
            self._file.write(piece)
            if mapped is not None:
                page = (address - base + start) // mmap.PAGESIZE * mmap.PAGESIZE
                mapped.madvise(mmap.MADV_DONTNEED, page, min(len(piece), len(mapped) - page))
        self._end += len(view)
        return len(view)

    def tell(self) -> int:
        return self._end

    def flush(self) -> None:
        """The writer flushes at its end; so does the caller."""

    def close(self) -> None:
        """The caller closes."""
