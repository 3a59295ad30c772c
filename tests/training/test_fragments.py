"""Every way to cut a parameter holds every element once, and any two of them meet in the whole."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.parallel.split import Split
from training import shards as shards_module
from training.fragments import Cut, overlap, packed, shares
from training.shards import Held, ShardFault, Shards, described, write_shard

# Shapes and splits: both dimensions, blocks, parts that are filled up, a part without anything, three dimensions.
CUTS: dict[str, tuple[tuple[int, ...], Split | None]] = {
    "not cut": ((5, 3), None),
    "vector": ((12,), Split(0, 12)),
    "vector, filled up": ((7,), Split(0, 7)),
    "rows": ((8, 3), Split(0, 8)),
    "rows, filled up": ((10, 3), Split(0, 10)),
    "rows, the last rank has none": ((5, 2), Split(0, 5)),
    "queries, keys and values": ((12, 5), Split(0, 12, 3)),
    "queries, keys and values, filled up": ((15, 2), Split(0, 15, 3)),
    "columns": ((3, 8), Split(1, 8)),
    "columns, filled up": ((3, 7), Split(1, 7)),
    "columns in blocks": ((4, 12), Split(1, 12, 3)),
    "the middle of three": ((2, 6, 3), Split(1, 6, 2)),
}


def held_by(whole: Tensor, split: Split | None, rank: int, ranks: int) -> Tensor:
    """What a tensor rank holds, written out with torch; -1 fills it up."""
    if split is None:
        return whole
    parts = []
    for block in whole.split(split.size // split.blocks, split.dimension):
        length = -(-block.shape[split.dimension] // ranks)
        own = block.narrow(split.dimension, min(rank * length, block.shape[split.dimension]), 0)
        if rank * length < block.shape[split.dimension]:
            first = rank * length
            own = block.narrow(split.dimension, first, min(length, block.shape[split.dimension] - first))
        missing = list(own.shape)
        missing[split.dimension] = length - own.shape[split.dimension]
        parts.append(torch.cat([own, torch.full(missing, -1.0)], split.dimension))
    return torch.cat(parts, split.dimension).contiguous()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("what", CUTS)
def test_a_part_is_what_torch_cuts_out(what: str, ranks: int) -> None:
    shape, split = CUTS[what]
    whole = torch.arange(float(np.prod(shape))).view(shape)
    for rank in range(ranks):
        cut = Cut(shape, split, rank, ranks) if split else Cut(shape)
        truth = held_by(whole, split, rank, ranks).flatten()
        assert cut.held_shape == tuple(held_by(whole, split, rank, ranks).shape)
        found = torch.full_like(truth, -1.0)
        runs = cut.held()
        for local, there, length in zip(*(each.tolist() for each in runs), strict=True):
            found[local : local + length] = whole.flatten()[there : there + length]
        assert torch.equal(found, truth)
        ends = runs.local + runs.length
        assert (runs.local[1:] >= ends[:-1]).all() and (np.diff(runs.whole) > 0).all()
        stored = packed(runs)
        assert stored.elements == int((truth >= 0).sum())


@pytest.mark.parametrize(("ranks", "to"), list(itertools.product([1, 2, 4], [1, 2, 3, 8])))
@pytest.mark.parametrize("what", CUTS)
def test_any_two_cuts_meet_in_the_whole_and_neighbours_are_one_copy(what: str, ranks: int, to: int) -> None:
    shape, split = CUTS[what]
    for mine, theirs in itertools.product(range(ranks), range(to)):
        source = packed((Cut(shape, split, mine, ranks) if split else Cut(shape)).held())
        target = (Cut(shape, split, theirs, to) if split else Cut(shape)).held()
        copies = overlap(source, target)
        pairs = set()
        for begin, end, length in zip(*(each.tolist() for each in copies), strict=True):
            pairs |= {(begin + n, end + n) for n in range(length)}
        truth = {
            (int(s), int(t))
            for s, in_whole in elements(source)
            for t, other in elements(target)
            if in_whole == other
        }
        assert pairs == truth
        if mine == theirs and ranks == to and source.elements == target.elements:
            assert len(copies.length) <= max(1, len(target.length))


def elements(runs: shards_module.Runs) -> list[tuple[int, int]]:
    return [
        (local + n, whole + n)
        for local, whole, length in zip(*(each.tolist() for each in runs), strict=True)
        for n in range(length)
    ]


def test_shares_are_equal_and_cover_all() -> None:
    for sizes in ([10, 1, 0, 25, 3], [1], [2, 2], [1000, 1, 1]):
        for ranks in (1, 2, 3, 7):
            found = [shares(sizes, ranks, rank) for rank in range(ranks)]
            for number, size in enumerate(sizes):
                covered = [
                    at
                    for share in found
                    for at in range(share[number][0], sum(share[number]))
                    if share[number][1]
                ]
                assert covered == list(range(size))
            loads = [sum(length for _, length in share) for share in found]
            assert max(loads) - min(loads) <= 1


# ------------------------------------------------------------------------------------------------ through files

KINDS = ("weight", "exp_avg", "exp_avg_sq")


def tensors() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    return {name: {kind: torch.rand(shape) for kind in KINDS} for name, (shape, _) in CUTS.items()}


def stretches(cut: Cut, ranks: int, rank: int) -> tuple[int, int]:
    """As ZeRO-3 does: equal stretches of what the tensor rank holds, the last one shorter."""
    elements = int(np.prod(cut.held_shape))
    length = -(-elements // ranks)
    return min(rank * length, elements), min((rank + 1) * length, elements)


def write(
    folder: Path, whole: dict[str, dict[str, Tensor]], tensor_ranks: int, data_ranks: int
) -> list[Path]:
    paths = []
    for data, tensor in itertools.product(range(data_ranks), range(tensor_ranks)):
        held = []
        for name, (shape, split) in CUTS.items():
            if split is None and tensor:
                continue
            cut = Cut(shape, split, tensor, tensor_ranks) if split else Cut(shape)
            start, stop = stretches(cut, data_ranks, data)
            if stop > start:
                mine = {
                    kind: held_by(value, split, tensor, tensor_ranks).flatten()[start:stop]
                    for kind, value in whole[name].items()
                }
                held.append(Held(name, cut, start, mine))
        paths.append(folder / f"{data}-{tensor}")
        write_shard(paths[-1], held)
    return paths


PARAMETERS = described({name: Cut(shape, split) for name, (shape, split) in CUTS.items()})


@pytest.mark.parametrize(
    ("source", "chunk"), [((1, 1), 1 << 24), ((1, 3), 5), ((4, 2), 5), ((3, 2), 1 << 24)]
)
def test_any_topology_reads_what_any_other_wrote(
    tmp_path: Path, source: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "CHUNK", chunk)
    whole = tensors()
    shards = Shards(write(tmp_path, whole, *source), PARAMETERS)
    for name in CUTS:
        assert all(torch.equal(shards.whole(name, kind), whole[name][kind]) for kind in KINDS)
    for tensor_ranks, data_ranks in ((1, 1), (2, 1), (1, 5), (3, 2), (4, 5)):
        for tensor, data in itertools.product(range(tensor_ranks), range(data_ranks)):
            for name, (shape, split) in CUTS.items():
                cut = Cut(shape, split, tensor, tensor_ranks) if split else Cut(shape)
                start, stop = stretches(cut, data_ranks, data)
                if stop == start:
                    continue
                mine = {kind: torch.full((stop - start,), torch.nan) for kind in KINDS}
                shards.fill(Held(name, cut, start, mine))
                for kind in KINDS:
                    truth = held_by(whole[name][kind], split, tensor, tensor_ranks).flatten()[start:stop]
                    assert torch.equal(mine[kind], truth.clamp(min=0)), (name, kind)  # zeros fill up


def test_what_fills_a_part_up_is_not_written(tmp_path: Path) -> None:
    whole = tensors()
    paths = write(tmp_path, whole, 4, 2)
    written = sum(
        shards_module.TensorFile(path).numel(key)
        for path in paths
        for key in shards_module.TensorFile(path).entries
    )
    assert written == sum(value.numel() for kinds in whole.values() for value in kinds.values())


def test_files_that_do_not_hold_everything_once_are_refused(tmp_path: Path) -> None:
    whole = tensors()
    paths = write(tmp_path, whole, 2, 2)
    for left in range(4):
        with pytest.raises(ShardFault, match="elements were saved|goes on at"):
            Shards([path for number, path in enumerate(paths) if number != left], PARAMETERS)
    with pytest.raises(ShardFault, match="goes on at"):
        Shards([*paths, paths[0]], PARAMETERS)
    (tmp_path / "other").mkdir()
    mixed = [paths[0], *write(tmp_path / "other", whole, 4, 2)[1:]]
    with pytest.raises(ShardFault):
        Shards(mixed, PARAMETERS)
    for wrong in ({"shape": [5, 4], "split": None}, {"shape": [5], "split": None}):
        with pytest.raises(ShardFault):
            Shards(paths, PARAMETERS | {"not cut": wrong})


@pytest.mark.parametrize(
    "values",
    [
        None, [], {"shape": [2]}, {"shape": "22", "split": None}, {"shape": [2.0], "split": None},
        {"shape": [-1], "split": None}, {"shape": [4], "split": [0, 4]}, {"shape": [4], "split": [1, 4, 1]},
        {"shape": [4], "split": [0, 5, 1]}, {"shape": [4], "split": [0, 4, 0]}, {"shape": [4], "split": [0, 4, 3]},
        {"shape": [2**70], "split": None}, {"shape": [2**40, 2**40], "split": None},
        {"shape": [2**50, 4], "split": [1, 4, 1]},
    ],
)  # fmt: skip
def test_a_shape_or_split_that_is_none_is_refused(tmp_path: Path, values: object) -> None:
    with pytest.raises(ShardFault, match="x: "):
        Shards([], {"x": values})
