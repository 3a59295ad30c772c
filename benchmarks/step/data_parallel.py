"""Plain data parallelism by torch, behind the verbs of the run's engine: the same model, losses and optimizer.

In bf16 the weights are bf16 and the optimizer has float32 copies of them, as DeepSpeed does it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.step.problem import Problem
from benchmarks.step.run import RunStep
from model.generation import Decoding
from model.pretraining import Batch, PretrainingOutput
from training.build import DataParts, build_model
from training.config import Recipe
from training.engine import Engine, World
from training.optimizer import build_optimizer


def step(problem: Problem) -> RunStep:
    """A run's step with this engine."""
    return RunStep(problem, data_parallel)


def data_parallel(recipe: Recipe, data: DataParts, world: World) -> Engine:
    """What a step asks of an engine, and no more of one."""
    return cast(Engine, _DataParallel(recipe, data, world))


class _DataParallel:
    def __init__(self, recipe: Recipe, data: DataParts, world: World) -> None:
        self.world = world
        model, _ = build_model(recipe, data)
        masters = dict(model.named_parameters())
        self._masters: list[Tensor] = []
        if recipe.precision == "bf16":
            masters = {name: torch.nn.Parameter(value.detach().clone()) for name, value in masters.items()}
            self._masters = list(masters.values())
            model = model.bfloat16()
        self._model = model
        self._parallel: Any = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self._optimizer = build_optimizer(masters.items(), recipe.optimizer, world.device)
        self._clipping = recipe.optimizer.gradient_clipping
        microbatches = recipe.batch.step_tokens // recipe.batch.microbatch_tokens
        self._left = self._accumulation = -(-microbatches // world.ranks)

    def __call__(
        self, batch: Batch, prediction_weights: Tensor | None = None, *, sentence_vectors_only: bool = False
    ) -> PretrainingOutput:
        model = self._model if sentence_vectors_only else self._parallel
        output: PretrainingOutput = model(
            batch, prediction_weights, sentence_vectors_only=sentence_vectors_only
        )
        return output

    def generate(self, batch: Batch, decoding: Decoding) -> Tensor:
        ids = self._model(batch, decoding=decoding)
        assert isinstance(ids, Tensor)
        return ids

    def train(self) -> None:
        self._model.train()

    def backward(self, loss: Tensor) -> None:
        with ExitStack() as stack:
            if self._left > 1:
                stack.enter_context(self._parallel.no_sync())
            (loss * self.world.ranks).backward()  # DDP takes the mean over the ranks

    def between_microbatches(self) -> None:
        self._left -= 1

    def step(self, learning_rate: float) -> None:
        self._left = self._accumulation
        weights = list(self._model.parameters())
        for master, weight in zip(self._masters, weights, strict=bool(self._masters)):
            assert weight.grad is not None
            master.grad = weight.grad.float()
        updated = self._masters or weights
        if self._clipping:
            torch.nn.utils.clip_grad_norm_(updated, self._clipping)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["rate_factor"]
        self._optimizer.step()
        with torch.no_grad():
            for master, weight in zip(self._masters, weights, strict=bool(self._masters)):
                weight.copy_(master)
        self._optimizer.zero_grad()
        self._model.zero_grad()
