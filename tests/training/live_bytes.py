"""What a rank really holds at points of a step: the bytes of the tensors that are alive, each storage counted once."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.batch import PackedBatch
from data.laid import Document, Example
from data.recipe import parse_recipe, read_recipe
from model.attention import SHORT
from model.layout import BucketedLayout, make_layout
from tests.packed import pack
from tests.ranks import run_on_ranks
from tests.small_run import RECIPE
from tests.training.runs import launched
from training.activation_sizes import Contents
from training.build import build_model
from training.config import Recipe
from training.engine import Engine, World, join_world, sharder
from training.optimizer import build_optimizer
from training.optimizer_state import stretches
from training.sharding import resolve_sharding
from training.step import run_microbatches

PAD, IDS = 1, 1000
COLLECTIVES = (
    "all_reduce", "all_gather_single", "all_gather_into_tensor", "reduce_scatter_single", "reduce_scatter_tensor",
)  # fmt: skip


class Case(NamedTuple):
    """A run of a step or two."""

    name: str
    recipe: Recipe
    sharding: dict[str, Any]
    lengths: Sequence[int]

    @property
    def stage(self) -> int:
        return int(self.sharding["zero_optimization"]["stage"])

    def resolved(self, data: int) -> dict[str, Any]:
        return resolve_sharding(self.sharding, Path("ds.json"), self.recipe, Path("r.yaml"), data)

    def microbatches(self, data: int) -> int:
        return int(self.resolved(data)["gradient_accumulation_steps"])


class Found(NamedTuple):
    """Bytes of a rank, and what of the batch decides about them."""

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    gathered: int
    activations: int  # all that the forward leaves
    elements: int  # of the parameters of this tensor rank
    sent: Counter[str]  # bytes as training/traffic.py counts them: over tensor ranks, for the pool, by ZeRO
    contents: Contents
    peak: int  # the most at once in a forward and a backward, where it was asked for


def measure(cases: Sequence[Case], tensor: int, data: int, *, peak: bool = False) -> list[list[Found]]:
    """Of every case what each rank held; all on the same ranks, one after the other. ``peak`` takes a step more."""

    def of_rank(group: Any) -> list[Found]:
        launched()
        world = join_world(tensor)
        return [_of_case(case, world, peak) for case in cases]

    return [list(of_case) for of_case in zip(*run_on_ranks(of_rank, tensor * data, timeout=300), strict=True)]


def _of_case(case: Case, world: World, peak: bool) -> Found:
    recipe = case.recipe
    gc.collect()
    gc.freeze()  # what is here already is nobody's
    resolved = case.resolved(world.ranks)
    # All that it asks of a store.
    data: Any = SimpleNamespace(
        material=SimpleNamespace(tokenizer=SimpleNamespace(vocabulary_size=IDS)),
        store=SimpleNamespace(languages=()),
    )
    model, _ = build_model(recipe, data, tensor=world.tensor, settle=sharder(resolved, world))
    optimizer = build_optimizer(model.named_parameters(), recipe.optimizer, world.device)
    engine = Engine(model, optimizer, resolved, world)
    inner = engine._engine
    batches = [
        batch_of(case.lengths, recipe.batch.microbatch_tokens, 99 * world.rank + n)
        for n in range(engine.accumulation)
    ]
    points: dict[str, dict[int, int]] = {}
    parameters = list(inner.module.parameters())
    flat = storages([getattr(inner.optimizer, "grad_partitions_flat_buffer", None)])
    backward, reduce = engine.backward, inner.allreduce_gradients

    def after_forward(loss: Tensor) -> None:
        if "forward" not in points:
            points["forward"] = alive()
            points["gathered"] = storages(p.data for p in parameters)
        backward(loss)

    def before_reducing(*arguments: Any, **named: Any) -> None:
        points["gradients"] = flat or storages(_gradients(inner))
        points["buckets"] = storages(_buckets(inner))
        reduce(*arguments, **named)
        if engine.stage == 2:  # cut before they are reduced for good
            points["gradients"] = storages(_gradients(inner))

    engine.backward, inner.allreduce_gradients = after_forward, before_reducing  # type: ignore[method-assign]
    for _ in range(2 if engine.stage == 3 else 1):  # stage 3 learns in the first what it keeps gathered
        gc.collect()
        points.clear()
        states = storages(tensor for stretch in stretches(inner) for tensor in stretch.tensors.values())
        whole = [parameter.data for parameter in parameters]
        weights = storages([*whole, *(p.ds_tensor for p in parameters if hasattr(p, "ds_tensor"))])
        known = {*weights, *states, *flat, *storages(_columns(batches)), *alive()}
        with torch.autograd.graph.saved_tensors_hooks(_same, _same), counted(world) as sent:
            run_microbatches(engine, batches, torch.ones(2) / 100, aligned=True)
        if "gradients" not in points:  # one rank without a stage reduces nothing
            points["gradients"], points["buckets"] = storages(_gradients(inner)), storages(_buckets(inner))
        engine.step(1e-3)
    gathered = {at: size for at, size in points["gathered"].items() if at not in weights}
    left = {at: size for at, size in points["forward"].items() if at not in known and at not in gathered}
    total = [sum(found.values()) for found in (weights, points["gradients"], states)]
    if engine.stage == 0 and recipe.precision == "fp32":
        total[2] -= total[0]  # the weights are their own masters
    found = Found(
        *total,
        sum(points["buckets"].values()),
        sum(gathered.values()),
        sum(left.values()),
        sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        sent,
        contents_of(batches[0], recipe, world.tensor.size if recipe.parallel.sequence else 1),
        _peak_of(lambda: run_microbatches(engine, batches, torch.ones(2) / 100, aligned=True)) if peak else 0,
    )
    inner.destroy()
    return found


def _peak_of(run: Callable[[], Any]) -> int:
    gc.collect()
    before = alive()
    with Watch(before) as watch:
        run()
    return sum(before.values()) + watch.most


class Watch(TorchDispatchMode):
    """The most bytes that the results of operations take at once, beside the storages that were there."""

    def __init__(self, there: Iterable[int]) -> None:
        super().__init__()
        self.most = 0
        self._there = frozenset(there)
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage.nbytes() and storage.data_ptr() not in self._there:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {at: kept for at, kept in self._alive.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return result


def _same(tensor: Tensor) -> Tensor:
    return tensor


def alive() -> dict[int, int]:
    """Bytes of every storage that a tensor of this process lies in, by its address."""
    return storages(thing for thing in gc.get_objects() if issubclass(type(thing), Tensor))


def storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    found = {}
    for tensor in tensors:
        if tensor is not None and tensor.device.type == "cpu" and tensor.untyped_storage().nbytes():
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def _columns(batches: Sequence[PackedBatch]) -> list[Tensor]:
    columns = [getattr(batch, name) for batch in batches for name in batch.__slots__]
    return [column for column in columns if isinstance(column, Tensor)]


def _gradients(engine: Any) -> list[Tensor]:
    """Of the parameters, or of DeepSpeed's where it took them over."""
    optimizer = engine.optimizer
    found = [parameter.grad for parameter in engine.module.parameters()]
    for of_group in getattr(optimizer, "averaged_gradients", {}).values():
        found += of_group if isinstance(of_group, list) else [of_group]
    found.append(getattr(optimizer, "grads_in_partition", None))
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def _buckets(engine: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for bucket in getattr(engine.optimizer, "ipg_buckets", {}).values():
        found += bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
    return found


@contextmanager
def counted(world: World) -> Any:
    """Bytes that this rank sends by ring, by the axis of the group: what torch.distributed is asked for."""
    sent: Counter[str] = Counter()
    before = {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            group = named.get("group")
            who = "tensor" if group is world.tensor.group else "pool" if "gather" in name else "zero"
            if name == "all_reduce" and group is world.data.group and "tensor" not in named:
                who = "counts"  # of the losses that are reported
            tensors = [tensor for tensor in (*given, *named.values()) if isinstance(tensor, Tensor)]
            whole = max(tensor.numel() * tensor.element_size() for tensor in tensors)
            ranks = dist.get_world_size(group)
            often = 2 if name == "all_reduce" else 1
            sent[who] += often * whole * (ranks - 1) // ranks
            return before[name](*given, **named)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counting(name))
    try:
        yield sent
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


def batch_of(lengths: Sequence[int], tokens: int, seed: int) -> PackedBatch:
    """Pairs of documents of ``lengths``, then masked ones of the same, a seventh of whose tokens is predicted."""
    random = np.random.default_rng(seed)

    def document(length: int, predicted: int) -> Document:
        places = np.sort(random.choice(length, predicted, replace=False))
        drawn = random.integers(5, IDS, size=length)
        return Document(drawn.astype(np.int32), np.arange(2, 2 + length), 0, length, places, drawn[places])

    pairs = zip(lengths[::2], lengths[1::2], strict=True)
    examples = [
        Example(0, [document(one, 0), document(other, 0)], [(0, 1)], number)
        for number, (one, other) in enumerate(pairs)
    ]
    examples += [Example(1, [document(length, max(1, length // 7))]) for length in lengths]
    return PackedBatch.from_arrays(pack(examples, tokens, PAD))


def contents_of(batch: PackedBatch, recipe: Recipe, multiple: int) -> Contents:
    """What the arithmetic is told of a batch."""
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    layout = make_layout(
        batch.token_ids,
        batch.document_starts,
        batch.context_lengths,
        pad_id=PAD,
        dtype=dtype,
        multiple=multiple,
    )
    assert isinstance(layout, BucketedLayout)
    short = [bucket for bucket in layout.buckets if bucket.length <= SHORT]
    return Contents(
        len(batch.token_ids),
        len(layout.order),
        len(batch.predicted),
        batch.sentence_tokens,
        batch.sentence_documents,
        len(batch.pairs),
        sum(bucket.documents * bucket.length**2 for bucket in short),
        len(layout.order) - sum(bucket.rows for bucket in short),
    )


def recipe_of(folder: Path, *settings: str) -> Recipe:
    """The small recipe; no store is made."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return parse_recipe(read_recipe(path, settings), Recipe)
