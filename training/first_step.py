"""The first step of a run is looked at closely, and run ahead where something costly comes before it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from data.microbatch import Microbatch, MicrobatchMaker
from data.planner import Planner
from data.recipe import UserError
from data.tally import Tally
from training.config import BatchConfig
from training.engine import Engine, World
from training.step import StepLosses, sum_tallies

Losses = Callable[[list[Microbatch], np.ndarray], StepLosses]
"""Forward and backward of this rank's microbatches, given the tally of the step."""


def check_texts(planner: Planner, tally: np.ndarray, batch: BatchConfig) -> None:
    """Whether the first step, whose ``tally`` (S, columns) is that of all ranks, holds something of every task.

    Raises:
        UserError: a task that has a share in it has no document.

    """
    shares = planner.mix(1).shares  # a task whose gate is shut or whose stage is to come has none yet
    read = tally[:, Tally.TOKENS] + tally[:, Tally.REJECTED]
    due, there = (
        {stream.task.name for stream, amount in zip(planner.streams, amounts, strict=True) if amount > 0}
        for amounts in (shares, read)
    )
    absent = sorted(due - there)
    if absent:
        raise UserError(
            f"a step of batch.step_tokens {batch.step_tokens} tokens holds no document of {', '.join(absent)}:"
            " make the step larger, or the task's weight."
        )


def check_numbers(losses: StepLosses, gradient_norm: float) -> None:
    """Whether what came of the first step is finite; if not it is no accident of training.

    Raises:
        UserError: the loss or the gradient is not.

    """
    for what, number in (("loss", float(losses.sums.sum())), ("gradient", gradient_norm)):
        if not math.isfinite(number):
            raise UserError(
                f"{what} of the first step: not finite ({number}). Check the weights of model.start_from."
            )


def dry_batch(
    planner: Planner, maker: MicrobatchMaker, batch: BatchConfig, engine: Engine, world: World, losses: Losses
) -> None:
    """Run the first step of ``planner``, a fresh one, without its update, and throw it away without a trace.

    Raises:
        UserError: as the checks above do, and as ``losses`` does.

    """
    plan = planner.plan()
    rows = batch.microbatch_tokens // batch.row_tokens
    firsts = [(world.rank + number * world.ranks) * rows for number in range(engine.accumulation)]
    microbatches = [maker(plan.rows(first, first + rows), plan.shut) for first in firsts]
    tally, _ = sum_tallies(microbatches, [], world.tensor)
    check_texts(planner, tally, batch)
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
        found = losses(microbatches, tally)
    check_numbers(found, engine.dry_step())
