"""One step: the losses of all tasks, each divided once by its count over the whole step, and their backward.

microbatches of this rank ──▶ tallies summed over ranks ──▶ weight of each stream's loss terms
                         ──▶ pseudo tokens, where the step has any: generated without gradient, written into the batch
                         ──▶ forward, losses, backward (with accumulation the pool's first pass before)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.batch import PackedBatch
from data.sampling import Stream
from data.stream import Microbatch, Tally
from data.tasks import TasksConfig
from model.generation import Decoding
from objectives.alignment import sentence_alignment
from objectives.alignment_pool import AlignmentPool
from objectives.masked_tokens import masked_token_loss
from objectives.report import LossReport
from training.engine import Engine


def sum_tallies(microbatches: Sequence[Microbatch], flags: Sequence[bool]) -> tuple[np.ndarray, list[bool]]:
    """The step's tally (S, len(Tally)) over all ranks, and which ``flags`` were raised on any of them: one exchange."""
    mine = sum(microbatch.tally for microbatch in microbatches)
    assert isinstance(mine, np.ndarray)
    sent = torch.from_numpy(np.concatenate([mine.ravel(), np.array(flags, dtype=np.int64)]))
    if dist.get_backend() == "nccl":
        sent = sent.cuda()
    dist.all_reduce(sent)
    received = sent.cpu().numpy()
    return received[: mine.size].reshape(mine.shape), [bool(value) for value in received[mine.size :]]


class StepLosses(NamedTuple):
    """What the losses of a step were, over all ranks."""

    sums: np.ndarray  # (S,) sum of each stream's loss terms
    terms: np.ndarray  # (S,)
    correct: np.ndarray  # (S,) predictions, or rows of the pool, that were right
    temperature: float


def weights_of(
    tally: np.ndarray, streams: Sequence[Stream], tasks: TasksConfig, device: torch.device
) -> Tensor:
    """The factor (S,) float32 of each stream's loss terms: the task's weight over its count in the whole step.

    Each task is divided by its own count, so that its share of the loss does not depend on how many terms it has.
    """
    factors = np.zeros(len(streams))
    for name, config in tasks.enabled().items():
        members = [i for i, stream in enumerate(streams) if stream.task.name == name]
        masked = streams[members[0]].task.loss == "masked"
        count = tally[members, Tally.PREDICTIONS if masked else Tally.PAIRS].sum()
        factors[members] = config.loss_weight / count if count else 0.0
    return torch.from_numpy(factors).float().to(device)


def run_microbatches(
    engine: Engine,
    batches: Sequence[PackedBatch],
    weights: Tensor,
    *,
    aligned: bool,
    decoding: Decoding | None = None,
) -> StepLosses:
    """Forward and backward of this rank's part of a step; the gradient is left with the engine.

    ``aligned`` says whether the recipe has tasks that compare sentences, ``decoding`` how pseudo tokens are chosen,
    None in a step in which no rank has any to generate. Both decide which collectives run, so they must be the same
    on every rank; ``aligned`` at every step too.
    """
    ranks = dist.group.WORLD
    if decoding is not None:
        batches = with_pseudo_tokens(engine, batches, decoding)
    reports: list[LossReport] = []
    pool = _first_pass(engine, batches, weights) if aligned and len(batches) > 1 else None
    if pool is not None:
        reports.append(pool.solve().report)
    for number, batch in enumerate(batches):
        output = engine(batch)
        masked = masked_token_loss(output, batch, len(weights))
        loss = masked.sums @ weights
        reports.append(masked)
        if pool is not None:
            loss = loss + pool.surrogate(number, output)
        elif aligned:
            alignment = sentence_alignment(output, batch, weights, ranks=ranks)
            loss = loss + alignment.total
            reports.append(alignment.report)
        engine.backward(loss)
        if number + 1 < len(batches):
            engine.between_microbatches()
    return _summed(reports, 1.0 / float(output.inverse_temperature.detach()))


def with_pseudo_tokens(
    engine: Engine, batches: Sequence[PackedBatch], decoding: Decoding
) -> list[PackedBatch]:
    """The batches with their slots filled by the current weights.

    One forward for each microbatch, also for one that has nothing to generate: ZeRO-3 gathers weights in every
    forward, and a rank that left one out would leave the others waiting.
    """
    filled = []
    for batch in batches:
        generation = batch.generation or PackedBatch.empty(batch.token_ids.device)
        filled.append(batch.filled(engine.generate(generation, decoding)))
    return filled


def _first_pass(engine: Engine, batches: Sequence[PackedBatch], weights: Tensor) -> AlignmentPool:
    """The sentence vectors of the whole step."""
    pool = AlignmentPool(weights, ranks=dist.group.WORLD)
    with torch.no_grad():
        for batch in batches:
            pool.collect(engine(batch, sentence_vectors_only=True), batch)
    return pool


def _summed(reports: Sequence[LossReport], temperature: float) -> StepLosses:
    """The reports of this rank's microbatches, added up over them and over the ranks."""
    columns = [torch.stack([part.detach().double() for part in report]) for report in reports]
    total = torch.stack(columns).sum(0)
    dist.all_reduce(total)
    sums, terms, correct = total.cpu().numpy()
    return StepLosses(sums, terms, correct, temperature)
