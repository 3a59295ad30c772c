"""One step: the losses of all tasks, each divided once by its count over the whole step, and their backward.

microbatches of this rank ──▶ tallies summed over ranks ──▶ weight of each stream's loss terms
                         ──▶ (pseudo tokens, where the step has any: training/writing.py)
                         ──▶ forward, losses, backward (with accumulation the pool's first pass before)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from data.batch import PackedBatch
from data.microbatch import Microbatch
from data.sampling import Stream
from data.settings.tasks import TasksConfig
from data.tally import Tally
from kernels.margin import MarginForm
from model.parallel.topology import Axis
from objectives.adaptive_margin import InBatch, Margin, pair_margin, triplet_margin
from objectives.alignment import Comparison, pairs_of, sentence_alignment
from objectives.alignment_pool import AlignmentPool
from objectives.masked_tokens import masked_tokens
from objectives.report import LossReport
from training.config import KernelsConfig
from training.engine import Engine


def sum_tallies(
    microbatches: Sequence[Microbatch],
    flags: Sequence[bool],
    tensor: Axis = Axis(),
) -> tuple[np.ndarray, list[bool]]:
    """The step's tally (S, len(Tally)) over all ranks, and which ``flags`` were raised on any of them: one exchange.

    The ranks of ``tensor`` have the same microbatches; they are counted once.
    """
    mine = sum(microbatch.tally for microbatch in microbatches)
    assert isinstance(mine, np.ndarray)
    if tensor.rank:
        mine = np.zeros_like(mine)
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
    # sums, terms and correct (S,) of the margin on the pairs of the pool, in the streams of these pairs
    in_batch: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    gaps: Mapping[str, np.ndarray] = {}  # of each margin task: (6,), the columns of kernels.margin.GapSums


class StepMargins(NamedTuple):
    """The margin losses of a step; None where a task is off."""

    triplets: MarginForm | None = None
    in_batch: InBatch | None = None


def weights_of(
    tally: np.ndarray, streams: Sequence[Stream], tasks: TasksConfig, device: torch.device
) -> Tensor:
    """The factor (S,) float32 of each stream's loss terms: the task's weight over its count in the whole step.

    Each task is divided by its own count, so that its share of the loss does not depend on how many terms it has.
    """
    factors = np.zeros(len(streams))
    for name, config in tasks.enabled().items():
        members = [i for i, stream in enumerate(streams) if stream.task.name == name]
        counted = {"masked": Tally.PREDICTIONS, "alignment": Tally.PAIRS, "margin": Tally.TRIPLETS}
        count = tally[members, counted[streams[members[0]].task.loss]].sum()
        factors[members] = config.loss_weight / count if count else 0.0
    return torch.from_numpy(factors).float().to(device)


def in_batch_weights(tally: np.ndarray, tasks: TasksConfig, device: torch.device) -> Tensor:
    """The factor (S,) float32 of each stream's pairs in the in-batch margin: the same for every stream."""
    count = tally[:, Tally.TAUGHT_PAIRS].sum()
    weight = tasks.in_batch_margin.loss_weight if tasks.in_batch_margin is not None else 0.0
    return torch.full((len(tally),), weight / count if count else 0.0, device=device)


def run_microbatches(
    engine: Engine,
    batches: Sequence[PackedBatch],
    weights: Tensor,
    *,
    aligned: bool,
    comparison: Comparison = Comparison(),  # noqa: B008  # a tuple: nothing in it changes
    margins: StepMargins = StepMargins(),  # noqa: B008  # likewise
    kernels: KernelsConfig = KernelsConfig(),  # noqa: B008  # frozen
) -> StepLosses:
    """Forward and backward of this rank's part of a step; the gradient is left with the engine.

    The slots of ``batches`` are filled. ``aligned`` says whether the recipe has tasks that compare sentences,
    ``margins`` which margin losses there are. They decide which collectives run, so they must be the same on every
    rank and at every step. ``comparison`` is how sentences are compared, ``kernels`` names the implementations of the
    losses that are computed here.
    """
    ranks = engine.world.data.group
    reports: list[LossReport] = []
    triplets: list[Margin] = []
    in_batch: list[Margin] = []
    pool = (
        _first_pass(engine, batches, weights, comparison, margins, kernels)
        if aligned and len(batches) > 1
        else None
    )
    if pool is not None:
        reports.append(pool.solve().report)
        in_batch += [] if pool.margin is None else [pool.margin]
    for number, batch in enumerate(batches):
        output = engine(batch, weights[batch.prediction_stream])
        loss = output.prediction_total
        reports.append(masked_tokens(output, batch, len(weights)))
        if pool is not None:
            loss = loss + pool.surrogate(number, output)
        elif aligned:
            alignment = sentence_alignment(
                output, batch, weights, comparison=comparison, ranks=ranks, implementation=kernels.alignment
            )
            loss = loss + alignment.total
            reports.append(alignment.report)
            if margins.in_batch is not None:
                vectors = output.sentence_vectors
                margin = pair_margin(
                    vectors,
                    batch.teacher_vectors,
                    pairs_of(batch),
                    margins.in_batch,
                    ranks=ranks,
                    implementation=kernels.in_batch_margin,
                )
                loss = loss + margin.total
                in_batch.append(margin)
        if margins.triplets is not None:
            margin = triplet_margin(output, batch, weights, margins.triplets, implementation=kernels.margin)
            loss = loss + margin.total
            reports.append(margin.report)
            triplets.append(margin)
        engine.backward(loss)
        if number + 1 < len(batches):
            engine.between_microbatches()
    temperature = 1.0 / float(output.inverse_temperature.detach())
    return _summed(reports, temperature, triplets, in_batch, ranks)


def _first_pass(
    engine: Engine,
    batches: Sequence[PackedBatch],
    weights: Tensor,
    comparison: Comparison,
    margins: StepMargins,
    kernels: KernelsConfig,
) -> AlignmentPool:
    """The sentence vectors of the whole step."""
    pool = AlignmentPool(
        weights,
        comparison=comparison,
        in_batch=margins.in_batch,
        ranks=engine.world.data.group,
        alignment=kernels.alignment,
        margin=kernels.in_batch_margin,
    )
    with torch.no_grad():
        for batch in batches:
            pool.collect(engine(batch, sentence_vectors_only=True), batch)
    return pool


def _summed(
    reports: Sequence[LossReport],
    temperature: float,
    triplets: Sequence[Margin],
    in_batch: Sequence[Margin],
    ranks: ProcessGroup | None,
) -> StepLosses:
    """What this rank's microbatches reported, added up over them and over the data ranks: one exchange."""
    parts = {"": _added([_columns(report) for report in reports])}
    if in_batch:
        parts["in_batch"] = _added([_columns(margin.report) for margin in in_batch])
    for name, margins in (("adaptive_margin", triplets), ("in_batch_margin", in_batch)):
        if margins:
            parts[name] = _added([margin.gaps for margin in margins])
    total = torch.cat([part.flatten() for part in parts.values()])
    dist.all_reduce(total, group=ranks)
    split = total.cpu().split([part.numel() for part in parts.values()])
    found = {name: values.view(parts[name].shape).numpy() for name, values in zip(parts, split, strict=True)}
    sums, terms, correct = found.pop("")
    riding = found.pop("in_batch", None)
    riding = None if riding is None else tuple(riding)
    return StepLosses(sums, terms, correct, temperature, riding, gaps=found)


def _columns(report: LossReport) -> Tensor:
    return torch.stack([part.detach().double() for part in report])


def _added(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)
