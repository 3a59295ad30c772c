"""A run's weights and optimizer state as files, one of each rank, and how any rank takes from them what it needs.

rank-00003.safetensors holds for each parameter of which the rank has a stretch the tensors NAME:weight, NAME:exp_avg
and NAME:exp_avg_sq, flat; and in its metadata, under "stretches", where they lie: NAME -> [rank, ranks, start], the
tensor rank and how many there are, and the first element of the stretch in that part (``stored``, fragments.py).
What no tensor rank has a part of is whole on each, and stands there as [0, 1, start].
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.parallel.split import Split
from model.tensor_file import CHUNK, Sealed, TensorFile, TensorFileError, room_for, write_tensors
from training.fragments import Cut, Runs, overlap, packed, within


class Held(NamedTuple):
    """A stretch of a parameter that this rank has, ``start`` counted in what its tensor rank holds."""

    name: str
    cut: Cut
    start: int
    tensors: Mapping[str, Tensor]  # what kind -> (elements,)


class ShardFault(ValueError):
    """Files that do not hold what is wanted of them; the message says which."""


class _Stored(NamedTuple):
    file: TensorFile
    rank: int
    ranks: int
    start: int
    elements: int


def write_shard(path: Path, held: Iterable[Held]) -> Sealed:
    """Write what this rank has to ``path``, synced and digested; one piece of a tensor is copied at a time."""
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    sources: dict[str, tuple[Tensor, Runs]] = {}
    where: dict[str, list[int]] = {}
    for name, cut, start, tensors in held:
        elements = next(iter(tensors.values())).numel()
        whole = cut.held()
        runs = within(whole, start, start + elements)
        if not runs.elements:
            continue  # nothing but what fills the part up
        before = within(whole, 0, start).elements
        where[name] = [cut.rank, cut.ranks, before]
        shifted = Runs(runs.local - start, runs.whole, runs.length)
        for kind, tensor in tensors.items():
            shapes[f"{name}:{kind}"] = tensor.dtype, (runs.elements,)
            sources[f"{name}:{kind}"] = tensor, shifted
    # The larger types first, so that each tensor stands where its type may be read.
    ordered = dict(sorted(shapes.items(), key=lambda item: -item[1][0].itemsize))

    def chunks() -> Iterator[tuple[str, Tensor]]:
        for key in ordered:
            tensor, runs = sources[key]
            for begin, length in zip(runs.local.tolist(), runs.length.tolist(), strict=True):
                for first in range(begin, begin + length, CHUNK):
                    yield key, tensor[first : min(first + CHUNK, begin + length)]

    return write_tensors(path, ordered, chunks(), {"stretches": json.dumps(where)})


class Shards:
    """All files of a save, opened for reading."""

    def __init__(self, files: Iterable[Path], parameters: Mapping[str, Any]) -> None:
        """``parameters``: name -> shape and split of the whole, as the manifest has them.

        Raises:
            ShardFault: a file is none, or together they do not hold every element of every parameter once.

        """
        self.cuts = {name: _whole_cut(name, values) for name, values in parameters.items()}
        self._stored: dict[str, list[_Stored]] = {name: [] for name in self.cuts}
        self.kinds: dict[str, torch.dtype] = {}
        for path in files:
            try:
                self._take(TensorFile(path))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                fault = str(error) if isinstance(error, TensorFileError) else f"{path}: {error!r}"
                raise ShardFault(fault) from None
        for name, stored in self._stored.items():
            self._check(name, stored)

    def fill(self, held: Held) -> None:
        """Overwrite the tensors of a stretch with what was saved of it; what fills a part up becomes zeros."""
        elements = next(iter(held.tensors.values())).numel()
        target = held.cut.held()
        for first in range(0, elements, CHUNK):
            last = min(first + CHUNK, elements)
            window = within(target, held.start + first, held.start + last)
            window = Runs(window.local - held.start - first, window.whole, window.length)
            found = [
                (stored, overlap(self._runs(held.name, stored), window)) for stored in self._stored[held.name]
            ]
            for kind, tensor in held.tensors.items():
                if tensor.dtype != self.kinds[kind]:
                    raise ShardFault(f"{kind} was saved as {self.kinds[kind]}, this run has {tensor.dtype}")
                there = tensor[first:last]
                direct = there.device.type == "cpu" and there.is_contiguous()
                buffer = there if direct else torch.empty(last - first, dtype=tensor.dtype)
                if window.elements < last - first:
                    buffer.zero_()
                for stored, copies in found:
                    reads = (
                        (
                            f"{held.name}:{kind}",
                            int(source) - stored.start,
                            buffer[int(to) : int(to + length)],
                        )
                        for source, to, length in zip(*copies, strict=True)
                    )
                    if len(copies.length):
                        stored.file.read_into(reads)
                if not direct:
                    there.copy_(buffer)

    def whole(self, name: str, kind: str) -> Tensor:
        """One tensor of a parameter, put together from all tensor and data ranks."""
        cut = Cut(self.cuts[name].shape)
        tensor = room_for(cut.elements, self.kinds[kind])
        self.fill(Held(name, cut, 0, {kind: tensor}))
        return tensor.view(cut.shape)

    def _runs(self, name: str, stored: _Stored) -> Runs:
        part = packed(self._cut(name, stored).held())
        return within(part, stored.start, stored.start + stored.elements)

    def _cut(self, name: str, stored: _Stored) -> Cut:
        shape, split, *_ = self.cuts[name]
        return Cut(shape, split if stored.ranks > 1 else None, stored.rank, stored.ranks)

    def _take(self, file: TensorFile) -> None:
        where = json.loads(file.metadata["stretches"])
        for key, entry in file.entries.items():
            name, _, kind = key.rpartition(":")
            rank, ranks, start = where[name]
            if name not in self._stored or len(entry.shape) != 1:
                raise ValueError(f"{key} is no stretch of a parameter")
            if self.kinds.setdefault(kind, entry.dtype) != entry.dtype:
                raise ValueError(f"{key} is {entry.dtype}, others are {self.kinds[kind]}")
            stretch = _Stored(file, rank, ranks, start, entry.shape[0])
            if not all(type(number) is int and number >= 0 for number in stretch[1:]) or rank >= ranks:
                raise ValueError(f"{key}: {where[name]} is no place")
            if stretch not in self._stored[name][-1:]:
                self._stored[name].append(stretch)
        missing = [
            f"{name}:{kind}" for name in where for kind in self.kinds if f"{name}:{kind}" not in file.entries
        ]
        if missing:
            raise ValueError(f"it holds no {missing[0]}")

    def _check(self, name: str, stored: list[_Stored]) -> None:
        """That the stretches of each part follow on one another from its first element to its last."""
        ranks = stored[0].ranks if stored else 1
        if ranks > 1 and self.cuts[name].split is None:
            raise ShardFault(f"{name} is not cut, and there are parts of it")
        for rank in range(ranks):
            part = self._cut(name, _Stored(None, rank, ranks, 0, 0))  # type: ignore[arg-type]
            end = 0
            for stretch in sorted(
                (s for s in stored if (s.rank, s.ranks) == (rank, ranks)), key=lambda s: s.start
            ):
                if stretch.start != end:
                    raise ShardFault(
                        f"{stretch.file.path}: {name} goes on at {stretch.start}, {end} was expected"
                    )
                end += stretch.elements
            if end != part.held().elements or any(s.ranks != ranks for s in stored):
                raise ShardFault(f"of {name} {end} elements were saved and {part.held().elements} are needed")


def described(cuts: Mapping[str, Cut]) -> dict[str, Any]:
    """Shape and split of every parameter, for the manifest."""
    return {
        name: {"shape": list(cut.shape), "split": None if cut.split is None else list(cut.split)}
        for name, cut in cuts.items()
    }


def _whole_cut(name: str, values: Any) -> Cut:
    """A parameter as the manifest describes it; numbers that no parameter has are refused before they are used."""
    try:
        shape, split = values["shape"], values["split"]
        if not all(type(number) is int and 0 <= number < 2**40 for number in [*shape, *(split or ())]):
            raise ValueError("not numbers")
        cut = Cut(tuple(shape), None if split is None else Split(*split))
        if cut.split is not None:
            dimension, size, blocks = split
            outer = math.prod(shape[:dimension])
            if shape[dimension] != size or not blocks or size % blocks or outer * blocks > 2**28:
                raise ValueError("a split of something else")
        if cut.elements >= 2**48:
            raise ValueError("too large")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ShardFault(f"{name}: {values!r} is not a shape and a split ({error!r})") from None
    return cut
