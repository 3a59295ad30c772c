"""Engine: DeepSpeed behind five verbs. The only door of deepspeed.

forward, backward, step, save, load. What of DeepSpeed's own objects is read for the last two is in
``training.optimizer_state``.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.recipe import UserError
from model.generation import Decoding
from model.parallel.split import split_of, whole_shape
from model.parallel.topology import Axis, Topology
from model.pretraining import Batch, PretrainingModel, PretrainingOutput
from model.tensor_file import Sealed
from training.compiler import put_off_compiler
from training.fragments import Cut, shares
from training.gradient_norm import square_of
from training.optimizer_state import COUNTS, set_model_from_masters, set_updates, stretches, updates
from training.shards import Held, ShardFault, Shards, write_shard

_TIMEOUT = timedelta(minutes=30)  # a first step may wait for one rank that compiles or prepares


class ShardError(UserError):
    """A fault in a file that perhaps this rank alone reads, so every rank that meets it has to say so."""

    said_by_every_rank = True


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run, and the device that it computes on."""

    topology: Topology
    device: torch.device

    @property
    def tensor(self) -> Axis:
        """The ranks that share this one's model and its data."""
        return self.topology.tensor

    @property
    def data(self) -> Axis:
        """The ranks that hold the same part of a model as this one, and other data."""
        return self.topology.data

    @property
    def rank(self) -> int:
        """This process on the data axis: which microbatches are its own."""
        return self.data.rank

    @property
    def ranks(self) -> int:
        """How many data ranks there are."""
        return self.data.size

    @property
    def first(self) -> bool:
        """Whether this rank writes what only one may write."""
        return self.topology.first

    @property
    def process(self) -> int:
        """The number of this process among all of the run, on whatever axes they stand."""
        return dist.get_rank()

    @property
    def processes(self) -> int:
        """How many there are."""
        return dist.get_world_size()


class StepOutcome(NamedTuple):
    """What the optimizer did."""

    gradient_norm: float  # before clipping, over all ranks
    skipped: bool  # the gradient was not finite: weights and optimizer are as before


def join_world(tensor: int = 1) -> World:
    """Start the process groups (NCCL on GPUs, gloo without) and say who this process is.

    ``tensor`` ranks share a model; it divides the number of ranks.
    """
    gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if not gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else a warning in every process
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # No extension that is compiled at launch is used. DeepSpeed would ask of each whether it could be: half a second.
    deepspeed.ops.__compatible_ops__ = {}
    _import_muon_uncompiled()
    if not gpu:
        _import_experts_without_triton()
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    deepspeed.init_distributed("nccl" if gpu else "gloo", timeout=_TIMEOUT, verbose=False)
    put_off_compiler()  # after the process groups, which would clear a cache of it
    if tensor == 1:
        assert dist.group.WORLD is not None
        return World(Topology(data=Axis.of(dist.group.WORLD)), device)
    from deepspeed.utils import groups

    # DeepSpeed's own groups: it asks for these in more places than for those of an mpu.
    groups._init_tp_mesh_device(tensor_model_parallel_size=tensor)
    of_tensor = Axis.of(groups.get_tensor_model_parallel_group())
    return World(Topology(of_tensor, Axis.of(groups.get_data_parallel_group())), device)


def _import_muon_uncompiled() -> None:
    """Import an optimizer of DeepSpeed's that is not used here, without torch's compiler.

    DeepSpeed asks of every optimizer whether it is a Muon. Its module wraps functions in torch.compile while it is
    imported, and that alone loads the whole compiler: a second or two of each start.
    """
    from deepspeed.runtime import compiler

    compile_ = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compile_


def _import_experts_without_triton() -> None:
    """Import DeepSpeed's layer of experts, which models here have none of, without Triton: a third of a second.

    DeepSpeed asks of every model whether it has experts. The module that answers looks for Triton and takes its
    kernels where a GPU is; there is none, so its answer is the same.
    """
    known = sys.modules.get("triton")
    sys.modules["triton"] = None  # type: ignore[assignment]  # to an import: not to be found
    try:
        import deepspeed.module_inject.auto_ep_layer  # noqa: F401
    finally:
        del sys.modules["triton"]
        if known is not None:
            sys.modules["triton"] = known


def sharder(sharding: dict[str, Any], world: World) -> Callable[[nn.Parameter], None] | None:
    """What shards a parameter over the data ranks as soon as it has its values; None below stage 3.

    DeepSpeed would do the same with the whole model at once, which every rank would have to hold until then.
    """
    if int(sharding["zero_optimization"].get("stage", 0)) < 3:
        return None
    import deepspeed

    dtype = torch.bfloat16 if sharding["bf16"]["enabled"] else torch.float32
    several = world.tensor.size > 1
    first: list[Any] = []

    def shard(parameter: nn.Parameter) -> None:
        parameter.data = parameter.data.to(dtype)
        if first:
            first[0].convert_to_zero_parameters(param_list=[parameter])
            return
        alone = nn.Module()
        alone.register_parameter("parameter", parameter)
        deepspeed.zero.Init(
            module=alone,
            dtype=dtype,
            config_dict_or_path=sharding,
            data_parallel_group=world.data.group if several else None,
            mpu=world.topology if several else None,
        )
        first.append(parameter)

    return shard


class Engine:
    """A model and its optimizer, sharded by DeepSpeed as the resolved DeepSpeed dict says."""

    def __init__(
        self,
        model: PretrainingModel,
        optimizer: torch.optim.Optimizer,
        sharding: dict[str, Any],
        world: World,
    ) -> None:
        """Shard ``model`` and ``optimizer``; both belong to the engine from here on."""
        import deepspeed

        self.world = world
        self.stage = int(sharding["zero_optimization"].get("stage", 0))
        self.accumulation = int(sharding["gradient_accumulation_steps"])
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=sharding, dist_init_required=False,
            mpu=world.topology if world.tensor.size > 1 else None,
        )  # fmt: skip
        # Without a stage DeepSpeed takes the optimizer as it is, and in bf16 puts one with master weights around it.
        self._bare = self.stage == 0 and not sharding["bf16"]["enabled"]
        if self._bare and world.ranks == 1:
            self._engine.enable_backward_allreduce = False  # it would copy all gradients, for nobody
        if self.stage == 0 and not self._bare:
            _begin_anew(self._engine.optimizer)
        self.cuts = {name: self._cut(parameter) for name, parameter in self._engine.module.named_parameters()}

    def __call__(
        self,
        batch: Batch,
        prediction_weights: Tensor | None = None,
        *,
        sentence_vectors_only: bool = False,
    ) -> PretrainingOutput:
        """The model's forward."""
        output = self._engine(batch, prediction_weights, sentence_vectors_only=sentence_vectors_only)
        if not torch.is_grad_enabled():
            self._forget_recording()
        return output

    def generate(self, batch: Batch, decoding: Decoding) -> Tensor:
        """Ids (M,) for the predicted positions of ``batch``, without gradient and without dropout."""
        training = self._engine.training
        self._engine.train(False)
        with torch.no_grad():
            ids: Tensor = self._engine(batch, decoding=decoding)
        self._engine.train(training)
        self._forget_recording()
        return ids

    def _forget_recording(self) -> None:
        """After a forward without a backward: let stage 3 not take it for a whole pass.

        Stage 3 records in which order a pass uses the modules; from then on it gathers ahead, and keeps what is used
        again. A recording that ends before the backward is found wrong in every backward, and made anew in every
        forward: weights are then gathered for each use.
        """
        if self.stage == 3:
            coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
            if coordinator.is_record_trace():
                coordinator._invalidate_trace()

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off."""
        self._engine.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this microbatch's share of the step's loss.

        The sum over data ranks and microbatches is what counts. DeepSpeed takes the mean over both, so the loss
        is scaled up first. The tensor ranks of a data rank give the same loss.
        """
        self._engine.backward(loss * (self.world.ranks * self.accumulation))

    def between_microbatches(self) -> None:
        """Tell DeepSpeed that a microbatch ended and the step did not."""
        self._engine.step()

    def step(self, learning_rate: float) -> StepOutcome:
        """After the last microbatch: clip, check that the gradient is finite, update the weights."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_factor"]
        if self._bare:
            norm = self._norm_of_gradients()
            # DeepSpeed's own would take a float32 norm: 1 % off for a table of a hundred million weights.
            self._engine.clip_fp32_gradients = functools.partial(self._clip, norm)
            if not math.isfinite(norm):
                for parameter in self._engine.module.parameters():
                    parameter.grad = None  # AdamW leaves such a parameter alone
        self._engine.step()
        vars(self._engine).pop("clip_fp32_gradients", None)
        if not self._bare:
            norm = float(self._engine.get_global_grad_norm())
        return StepOutcome(norm, not math.isfinite(norm))

    def _norm_of_gradients(self) -> float:
        """Over all parts of the model, where DeepSpeed takes none; the same on every rank."""
        squares = torch.zeros(2, dtype=torch.float64, device=self.world.device)  # of parts, of what is whole
        for parameter in self._engine.module.parameters():
            if parameter.grad is not None:
                whole = int(split_of(parameter) is None)
                squares[whole] += square_of(parameter.grad)
        if self.world.tensor.size > 1:
            dist.all_reduce(squares[:1], group=self.world.tensor.group)
        return math.sqrt(float(squares.sum()))

    def _clip(self, norm: float) -> None:
        """Scale gradients of this ``norm`` as DeepSpeed's other stages do."""
        factor = self._engine.gradient_clipping() / (norm + 1e-6)
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        if factor < 1 and gradients:
            torch._foreach_mul_(gradients, factor)

    def dry_step(self) -> float:
        """``step`` without the update: the norm of the gradient, which is thrown away.

        Only the optimizer's own step is left out. All else is what DeepSpeed does at every step, so that gradients,
        buffers and masters end at every stage as they do there, and no buffer has to be known by name: what a stage
        adds up later begins anew, and weights are copied from masters that they were copied from before.
        """
        counts = {name: getattr(self._engine, name) for name in COUNTS}
        optimizer = self._engine.basic_optimizer
        optimizer.step = lambda *_, **__: None
        try:
            return self.step(0.0).gradient_norm
        finally:
            del optimizer.step
            vars(self._engine).update(counts)

    def save(self, path: Path) -> Sealed:
        """Write to ``path`` what of weights and optimizer state this rank is the one to write."""
        return write_shard(path, self._own())

    def counts(self) -> dict[str, int]:
        """What is counted: updates of the weights, and DeepSpeed's steps."""
        return {"updates": updates(self._engine)} | {name: getattr(self._engine, name) for name in COUNTS}

    def load(self, shards: Shards, counts: dict[str, int]) -> None:
        """Take from a save, made by any number of ranks at any stage, what this rank has.

        Raises:
            ShardError: it is not a save of this model.

        """
        mine = {name: cut.shape for name, cut in self.cuts.items()}
        theirs = {name: cut.shape for name, cut in shards.cuts.items()}
        if mine != theirs:
            different = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
            raise ShardError(f"the checkpoint is one of another model: {', '.join(different[:3])} ...")
        set_updates(self._engine, counts["updates"])
        vars(self._engine).update({name: counts[name] for name in COUNTS})
        try:
            for held in self._held():
                shards.fill(held)
        except (ShardFault, ValueError, OSError) as fault:
            raise ShardError(f"the checkpoint can not be read: {fault}") from None
        set_model_from_masters(self._engine)

    def _held(self) -> Iterator[Held]:
        for stretch in stretches(self._engine):
            yield Held(stretch.name, self.cuts[stretch.name], stretch.start, stretch.tensors)

    def _own(self) -> Iterator[Held]:
        """``_held`` without what another rank, which has it too, writes."""
        held = [one for one in self._held() if one.cut.split is not None or self.world.tensor.rank == 0]
        if self.stage > 0:
            yield from held
            return
        # Every data rank has everything: each writes an equal share.
        sizes = [next(iter(one.tensors.values())).numel() for one in held]
        for one, (start, elements) in zip(
            held, shares(sizes, self.world.data.size, self.world.data.rank), strict=True
        ):
            if elements:
                tensors = {kind: tensor[start : start + elements] for kind, tensor in one.tensors.items()}
                yield Held(one.name, one.cut, one.start + start, tensors)

    def _cut(self, parameter: Tensor) -> Cut:
        """How this rank's ``parameter`` is cut from the whole."""
        split = split_of(parameter)
        if split is None:
            return Cut(whole_shape(parameter))
        return Cut(whole_shape(parameter), split, self.world.tensor.rank, self.world.tensor.size)


def _begin_anew(optimizer: Any) -> None:
    """Undo what DeepSpeed's optimizer of stage 0 in bf16 does to make its states: a step with a gradient of zeros.

    Adam counts it, so that the correction of its moments would be one step ahead of the other stages', and it
    decays the weights once.
    """
    optimizer.optimizer.state.clear()
    for group in optimizer.optimizer.param_groups:
        group.pop("step", None)  # where apex counts
    optimizer.refresh_fp32_params()
