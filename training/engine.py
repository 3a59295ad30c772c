"""Engine: DeepSpeed behind five verbs. The only door of deepspeed.

forward, backward, step, save, load; and reading the weights of a save without any process group.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from data.recipe import UserError
from model.generation import Decoding
from model.pretraining import Batch, PretrainingModel, PretrainingOutput

_RECIPE_DECIDES = ("weight_decay", "betas", "eps", "rate_factor")
_COUNTS = (
    "global_steps",
    "global_samples",
    "skipped_steps",
)  # DeepSpeed's, saved with a checkpoint
_MASTER_NAMES = "calque_master_names"
_WITHOUT_CODE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_TIMEOUT = timedelta(minutes=30)  # a first step may wait for one rank that compiles or prepares


class ShardError(UserError):
    """A fault in a file that perhaps this rank alone reads, so every rank that meets it has to say so."""

    said_by_every_rank = True


@dataclass(frozen=True)
class World:
    """This process among the data-parallel ranks, and the device that it computes on."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes what only one may write."""
        return self.rank == 0


class StepOutcome(NamedTuple):
    """What the optimizer did."""

    gradient_norm: float  # before clipping, over all ranks
    skipped: bool  # the gradient was not finite: weights and optimizer are as before


def join_world() -> World:
    """Start the process group (NCCL on GPUs, gloo without) and say who this process is."""
    gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if not gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else a warning in every process
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # An extension for inference that would be compiled at the first launch; training never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    deepspeed.init_distributed("nccl" if gpu else "gloo", timeout=_TIMEOUT, verbose=False)
    return World(dist.get_rank(), dist.get_world_size(), device)


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
            model=model, optimizer=optimizer, config=sharding, dist_init_required=False
        )
        # Without a stage DeepSpeed takes the optimizer as it is, and in bf16 puts one with master weights around it.
        self._bare = self.stage == 0 and not sharding["bf16"]["enabled"]
        self._masters = self.stage == 0 and not self._bare
        if self._masters:
            _begin_anew(self._engine.optimizer)
        _read_checkpoints_without_code()

    def __call__(self, batch: Batch, *, sentence_vectors_only: bool = False) -> PretrainingOutput:
        """The model's forward."""
        return self._engine(batch, sentence_vectors_only=sentence_vectors_only)

    def generate(self, batch: Batch, decoding: Decoding) -> Tensor:
        """Ids (M,) for the predicted positions of ``batch``, without gradient and without dropout."""
        training = self._engine.training
        self._engine.train(False)
        with torch.no_grad():
            ids: Tensor = self._engine(batch, decoding=decoding)
        self._engine.train(training)
        return ids

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off."""
        self._engine.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this microbatch's share of the step's loss.

        The sum over ranks and microbatches is what counts. DeepSpeed takes the mean over both, so the loss is
        scaled up first.
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
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            # In float64: the float32 norm of a large table is off in the sixth digit.
            norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
            if not math.isfinite(norm):
                for parameter in self._engine.module.parameters():
                    parameter.grad = (
                        None  # AdamW leaves such a parameter alone, DeepSpeed's clipping would fail
                    )
                self._engine.clip_fp32_gradients = lambda: None
        self._engine.step()
        vars(self._engine).pop("clip_fp32_gradients", None)
        if not self._bare:
            norm = float(self._engine.get_global_grad_norm())
        return StepOutcome(norm, not math.isfinite(norm))

    def dry_step(self) -> float:
        """``step`` without the update: the norm of the gradient, which is thrown away.

        Only the optimizer's own step is left out. All else is what DeepSpeed does at every step, so that gradients,
        buffers and masters end at every stage as they do there, and no buffer has to be known by name: what a stage
        adds up later begins anew, and weights are copied from masters that they were copied from before.
        """
        counts = {name: getattr(self._engine, name) for name in _COUNTS}
        optimizer = self._engine.basic_optimizer
        optimizer.step = lambda *_, **__: None
        try:
            return self.step(0.0).gradient_norm
        finally:
            del optimizer.step
            vars(self._engine).update(counts)

    def save(self, folder: Path, tag: str) -> None:
        """Write this rank's shards to ``folder/tag``; returns when every rank has."""
        state = {_MASTER_NAMES: self._master_names()} if self._masters else {}
        self._engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
        dist.barrier()
        if self.world.first:
            for script in folder.glob("zero_to_*.py"):  # DeepSpeed's, which unpickle whatever they are given
                script.unlink()

    def load(self, folder: Path, tag: str) -> None:
        """Read the shards that ``save`` wrote at the same number of ranks."""
        optimizer = self._engine.optimizer
        # DeepSpeed takes these from the checkpoint and would silently ignore what the recipe says now.
        settings = [{name: group[name] for name in _RECIPE_DECIDES} for group in optimizer.param_groups]
        try:
            path, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        except pickle.UnpicklingError as error:
            raise _refused(folder / tag, error) from None
        if path is None:
            raise UserError(f"{folder / tag}: DeepSpeed found no checkpoint there.")
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values)
        if hasattr(optimizer, "clip_grad"):
            optimizer.clip_grad = self._engine.gradient_clipping()

    def _master_names(self) -> list[list[str]]:
        """Of each of the optimizer's groups, the names of the weights whose masters it holds, in its order."""
        groups = self._engine.optimizer.fp16_groups  # so called in bf16 too
        return [[self._engine.param_names[parameter] for parameter in group] for group in groups]


def whole_weights(folder: Path, stage: int) -> dict[str, Tensor]:
    """Every float32 weight of the save in ``folder``, by name, put together in this one process."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    _read_checkpoints_without_code()
    # DeepSpeed's merging calls torch.load(weights_only=False); torch lets this variable overrule it.
    before = os.environ.get(_WITHOUT_CODE)
    os.environ[_WITHOUT_CODE] = "1"
    try:
        if stage == 0:
            (file,) = folder.glob("mp_rank_00_model_states.pt")
            return _with_masters(torch.load(file, map_location="cpu", weights_only=True))
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name))
    except pickle.UnpicklingError as error:
        raise _refused(folder, error) from None
    finally:
        if before is None:
            del os.environ[_WITHOUT_CODE]
        else:
            os.environ[_WITHOUT_CODE] = before


def _begin_anew(optimizer: Any) -> None:
    """Undo what DeepSpeed's optimizer of stage 0 in bf16 does to make its states: a step with a gradient of zeros.

    Adam counts it, so that the correction of its moments would be one step ahead of the other stages', and it
    decays the weights once.
    """
    optimizer.optimizer.state.clear()
    for group in optimizer.optimizer.param_groups:
        group.pop("step", None)  # where apex counts
    optimizer.refresh_fp32_params()


def _with_masters(saved: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a save of stage 0; in bf16 the optimizer's float32 masters of them."""
    weights: dict[str, Tensor] = dict(saved["module"])
    optimizer = saved["optimizer"]
    for number, names in enumerate(saved.get(_MASTER_NAMES, [])):
        if "fp32_groups" in optimizer:
            masters = optimizer["fp32_groups"][number]
        else:  # apex's Adam: one flat tensor a group
            flat = optimizer["fp32_groups_flat"][number]
            masters = flat[: sum(weights[name].numel() for name in names)].split(
                [weights[name].numel() for name in names]
            )
        for name, master in zip(names, masters, strict=True):
            weights[name] = master.detach().view(weights[name].shape)
    return weights


def _refused(folder: Path, error: pickle.UnpicklingError) -> ShardError:
    return ShardError(
        f"{folder}: a file in it holds something else than a run saves, possibly a program, and was not opened."
        f" Take another checkpoint, or restore this one. ({str(error).splitlines()[0]})"
    )


def _read_checkpoints_without_code() -> None:
    """DeepSpeed unpickles its files, which may run code; allow the few types that they really hold, no others."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address])

    def load(self: object, path: str, map_location: Any = None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=True)

    TorchCheckpointEngine.load = load
