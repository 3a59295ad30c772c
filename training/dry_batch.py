"""The dry batch: all of the first step but its update, before anything is spent on training."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from data.microbatch import Microbatch, MicrobatchMaker
from data.planner import Planner
from data.recipe import UserError
from kernels.implementation import ImplementationUnavailable, taken_by_auto
from training.config import BatchConfig
from training.engine import Engine, World
from training.step import StepLosses, sum_tallies

Losses = Callable[[list[Microbatch], np.ndarray], StepLosses]
"""Forward and backward of this rank's microbatches, given the tally of the step."""


def dry_batch(
    planner: Planner, maker: MicrobatchMaker, batch: BatchConfig, engine: Engine, world: World, losses: Losses
) -> str:
    """Run the first step of ``planner``, a fresh one, and throw it away without a trace.

    Returns what the kernels' "auto" took, for people; empty where nothing was left to it.

    Raises:
        UserError: a task has no document in the step, or its loss or gradient is not finite, or the recipe names
            an implementation of a loss that can not run here.

    """
    plan = planner.plan()
    shares = planner.mix(1).shares  # a task whose gate is shut or whose stage is to come has none yet
    due = {stream.task.name for stream, share in zip(planner.streams, shares, strict=True) if share > 0}
    absent = sorted(due - {planner.streams[i].task.name for i in np.unique(plan.records[:, 0])})
    if absent:
        raise UserError(
            f"a step of batch.step_tokens {batch.step_tokens} tokens holds no document of {', '.join(absent)}:"
            " make the step larger, or the task's weight."
        )
    rows = batch.microbatch_tokens // batch.row_tokens
    firsts = [(world.rank + number * world.ranks) * rows for number in range(engine.accumulation)]
    microbatches = [maker(plan.rows(first, first + rows), plan.shut) for first in firsts]
    tally, _ = sum_tallies(microbatches, [], world.tensor)
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
        try:
            found = losses(microbatches, tally)
        except ImplementationUnavailable as error:
            raise UserError(f"kernels: {error}") from None
    norm = engine.dry_step()
    for what, number in (("loss", float(found.sums.sum())), ("gradient", norm)):
        if not math.isfinite(number):
            raise UserError(
                f"{what} of the first step: not finite ({number}). Check the weights of model.start_from,"
                " and where it is continued, the checkpoint."
            )
    return ", ".join(f"{operation} {implementation}" for operation, implementation in taken_by_auto().items())
