"""The columns of a store's Arrow files: arrays whose bytes are compared with their checksums before they are used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.checksums import BLOCK, CheckedFile
from data.recipe import UserError

if TYPE_CHECKING:  # imported when a file is read: a recipe is checked before
    import pyarrow as pa


class Column(np.lib.mixins.NDArrayOperatorsMixin):
    """A read-only array (n,) of numbers.

    What is asked for is checked and given as numpy's: a number, a slice (a view of the file), what an array of places
    picks. Arithmetic and np.asarray read all of it.
    """

    def __init__(self, file: ArrowFile, values: np.ndarray, start: int) -> None:
        """``start``: the place of the first value in the file, in bytes."""
        self._file, self._values, self._start = file, values, start
        self._size = values.itemsize
        self.dtype, self.shape = values.dtype, values.shape

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | np.integer):
            place = self._start + (int(key) % max(len(self._values), 1)) * self._size
            self._file.check(place, place + self._size)
        elif isinstance(key, slice):
            first, last, step = key.indices(len(self._values))
            if last > first:
                self._file.check(self._start + first * self._size, self._start + last * self._size)
            elif step < 0:
                return np.asarray(self)[key]
        else:
            key = np.asarray(key)
            key = np.flatnonzero(key) if key.dtype == bool else key if key.size else key.astype(np.int64)
            places = key.ravel() % max(len(self._values), 1)
            # a value lies in one block: buffers are aligned
            self._file.check_blocks((self._start + places * self._size) // BLOCK)
        return self._values[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._file.check(self._start, self._start + self._values.nbytes)
        return np.array(self._values, dtype=dtype, copy=copy)

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **others: Any) -> Any:
        arrays = [np.asarray(each) if isinstance(each, Column) else each for each in inputs]
        return getattr(function, method)(*arrays, **others)

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self))

    def tolist(self) -> list[Any]:
        """All values, as Python's numbers."""
        return list(np.asarray(self).tolist())


class ArrowFile:
    """An Arrow file of one record batch, opened when its first column is asked for."""

    def __init__(self, path: Path, digest: str, remedy: str) -> None:
        """``remedy``: the end of the message about damage."""
        self._path, self._digest, self._remedy = path, digest, remedy

    def check(self, start: int, end: int) -> None:
        """UserError if bytes ``start`` to ``end`` (excluded) are not those that were written."""
        if end > start:
            try:
                self._file.check(start, end)
            except ValueError as error:
                raise self._damaged(error) from None

    def check_blocks(self, blocks: np.ndarray) -> None:
        """The same for blocks of the file."""
        try:
            self._file.check_blocks(blocks)
        except ValueError as error:
            raise self._damaged(error) from None

    def numbers(self, name: str) -> Column:
        """A column of numbers."""
        column = self._batch.column(name)
        return self._column(column.buffers()[1], column.type.to_pandas_dtype(), len(column))

    def lists(self, name: str) -> tuple[Column, Column]:
        """The ends of a column of lists of numbers, or of texts, and all of its values, or bytes, end to end."""
        column = self._batch.column(name)
        import pyarrow as pa

        offsets, values = column.buffers()[1], column.buffers()[-1]
        kind = np.uint8 if pa.types.is_large_string(column.type) else column.type.value_type.to_pandas_dtype()
        ends = self._column(offsets, np.int64, len(column) + 1)
        return ends, self._column(values, kind, int(ends[-1]))

    @cached_property
    def _file(self) -> CheckedFile:
        try:
            return CheckedFile(self._path, self._digest)
        except (ValueError, OSError) as error:
            raise self._damaged(error) from None

    @cached_property
    def _batch(self) -> pa.RecordBatch:
        import pyarrow as pa

        size = self._path.stat().st_size  # what describes the columns stands at the beginning and at the end
        self.check(0, min(size, BLOCK))
        self.check(max(0, size - BLOCK), size)
        return pa.ipc.open_file(pa.BufferReader(self._whole)).get_batch(0)

    @cached_property
    def _whole(self) -> pa.Buffer:
        import pyarrow as pa

        return pa.py_buffer(self._file.mapped)

    def _column(self, buffer: pa.Buffer, kind: Any, count: int) -> Column:
        start = buffer.address - self._whole.address if count else 0
        return Column(self, np.frombuffer(self._file.mapped, kind, count, start), start)

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{error}: the token store is damaged; {self._remedy}")
