"""One safetensors file: written as a stream and digested on the way, read by ranges. Nothing in one is executed.

    8 bytes: length of the header | header (JSON): name -> type, shape, where | the tensors' bytes, one after the other

The format is that of the safetensors library, which opens what is written here. Two things are done here that it
does not do: a tensor is written in pieces, so that a file may hold more than there is memory, and what is read is
read into memory that is there already.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_LONGEST_HEADER = 100_000_000  # the safetensors library's own bound
CHUNK = 1 << 24  # elements that are copied at once where a tensor is not in this process's memory already


class TensorFileError(ValueError):
    """A file that is not what the format says; the message names it."""


class Entry(NamedTuple):
    """Where a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file


class Sealed(NamedTuple):
    """A file that was written and synced to disk."""

    bytes: int
    sha256: str


class TensorFile:
    """The header of a file, checked; the tensors stay where they are until they are asked for."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            TensorFileError: entries overlap, leave a gap, reach beyond the file, or are no entries.

        """
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                    raise TensorFileError(f"{path}: a header of {length} bytes in a file of {size}")
                header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
            if not isinstance(header, dict):
                raise ValueError("the header is not an object")
            self.metadata = _metadata(header.pop("__metadata__", {}))
            self.entries = {name: _entry(name, values, 8 + length, size) for name, values in header.items()}
        except OSError as error:
            raise TensorFileError(f"{path}: can not be read ({error})") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, TensorFileError):
                raise
            raise TensorFileError(f"{path}: not a safetensors file ({error})") from None
        end = 8 + length
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1].offset):
            if entry.offset != end:
                raise TensorFileError(f"{path}: {name} does not begin where the tensor before it ends")
            end += _bytes(entry)
        if end != size:
            raise TensorFileError(f"{path}: {size - end} bytes belong to no tensor")

    def numel(self, name: str) -> int:
        """Elements of a tensor."""
        return math.prod(self.entries[name].shape)

    def read_into(self, reads: Iterable[tuple[str, int, Tensor]]) -> None:
        """For each (name, first element, contiguous 1-D CPU tensor of its type): fill the tensor from there on."""
        with self.path.open("rb", buffering=0) as file:
            for name, start, tensor in reads:
                entry = self.entries[name]
                assert tensor.dtype == entry.dtype and 0 <= start <= self.numel(name) - tensor.numel()
                view, offset = _memory(tensor), entry.offset + start * tensor.element_size()
                while len(view):
                    count = os.preadv(file.fileno(), [view], offset)
                    if not count:
                        raise TensorFileError(f"{self.path}: ends within {name}")
                    view, offset = view[count:], offset + count

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        entry = self.entries[name]
        tensor = room_for(math.prod(entry.shape), entry.dtype)
        self.read_into([(name, 0, tensor)])
        return tensor.view(entry.shape)


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    chunks: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> Sealed:
    """Write a file of tensors of ``shapes`` and sync it to disk.

    ``chunks`` yields (name, piece): the tensors in the order of ``shapes``, each in one or more pieces of its flat
    form. One piece is in memory at a time.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        start = memoryview(len(encoded).to_bytes(8, "little") + encoded)
        for block in itertools.chain([start], _in_order(shapes, chunks)):
            _write(file.fileno(), block)
            digest.update(block)
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    return Sealed(size, digest.hexdigest())


def room_for(elements: int, dtype: torch.dtype) -> Tensor:
    """Memory for a flat tensor that is read once and given back: a mapping of its own.

    It goes back to the system when the tensor is freed, where the heap would keep holes between what stays.
    """
    if not elements:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize), dtype=dtype)


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's flat form in pieces of at most CHUNK elements."""
    yield from tensor.detach().reshape(-1).split(CHUNK)


def _in_order(
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], chunks: Iterable[tuple[str, Tensor]]
) -> Iterator[memoryview]:
    """The bytes of ``chunks``; that they are those of ``shapes`` is asserted, since the header is written already."""
    left = {name: math.prod(shape) for name, (_, shape) in shapes.items()}
    names = iter(shapes)
    now = None
    for name, piece in chunks:
        while now != name:
            assert now is None or left[now] == 0, now
            now = next(names)
        left[name] -= piece.numel()
        assert piece.dtype == shapes[name][0] and left[name] >= 0, name
        yield _memory(piece.detach().to("cpu").contiguous())
    assert not any(left.values()), left


def _memory(tensor: Tensor) -> memoryview:
    raw: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def _write(descriptor: int, block: memoryview) -> None:
    while len(block):
        block = block[os.write(descriptor, block) :]


def _bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * entry.dtype.itemsize


def _entry(name: str, values: Any, data: int, size: int) -> Entry:
    shape, (begin, end) = values["shape"], values["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name}: shape {shape} at {begin} to {end}")
    entry = Entry(_TYPES[values["dtype"]], tuple(shape), data + begin)
    if end - begin != _bytes(entry) or data + end > size:
        raise ValueError(f"{name}: shape {shape} at {begin} to {end} in a file of {size} bytes")
    return entry


def _metadata(values: Any) -> dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError("the metadata are not texts")
    return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in the header")
    return found
