"""Pseudo tokens of a step: written by the current weights, judged, and counted before a loss is divided by anything.

microbatches with empty slots ──▶ ids, without gradient ──▶ filled ──▶ pairs that hold one language given up ─▶ batches
                                                               ╰──▶ what mixed texts hold, summed over ranks ─▶ tally
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.batch import PackedBatch
from data.microbatch import Microbatch
from data.tally import Written
from objectives.back_translation import Filled, PseudoTokens
from objectives.second_language import of_one_language
from training.engine import Engine


class StepText(NamedTuple):
    """This rank's microbatches as the losses read them, and what the step holds."""

    batches: list[PackedBatch]
    tally: np.ndarray  # (S, len(Tally)) over all ranks: of mixed texts, only pairs of two languages
    health: np.ndarray | None = (
        None  # (L, len(Health)) over all ranks, of the pseudo tokens where the step has any
    )


def write_pseudo_tokens(
    engine: Engine, microbatches: Sequence[Microbatch], pseudo: PseudoTokens, tally: np.ndarray
) -> StepText:
    """Fill the slots of this rank's ``microbatches``; ``tally`` (S, len(Tally)) is the step's, as it was made.

    Every rank must call, at every step in which one of them has something to write: there is one exchange. A pair
    that is given up leaves the pool of all ranks, as if its record had given no example; its tokens are spent.
    """
    device = engine.world.device
    batches: list[PackedBatch] = []
    healths: list[Tensor] = []
    more = np.zeros_like(tally)
    for microbatch in microbatches:
        filled = pseudo.write(engine.generate, PackedBatch.from_arrays(microbatch.arrays).to(device))
        batches.append(filled.batch)
        healths.append(filled.health)
        if microbatch.unwritten is not None:
            assert filled.second is not None
            given_up = of_one_language(filled.batch, filled.second)
            batches[-1] = filled.batch.without_pairs(given_up)
            more += microbatch.unwritten.settled(len(tally), _written(filled, given_up))
    health = torch.stack(healths).sum(0)
    found = torch.cat([torch.from_numpy(more).to(device).flatten(), health.flatten()])
    dist.all_reduce(found, group=engine.world.data.group)
    columns, of_languages = found.cpu().split([more.size, health.numel()])
    return StepText(
        batches, tally + columns.numpy().reshape(more.shape), of_languages.view(health.shape).numpy()
    )


def _written(filled: Filled, given_up: Tensor) -> Written:
    batch = filled.batch
    assert filled.second is not None
    columns = (
        batch.token_ids, batch.document_starts, batch.slots, batch.pairs, batch.pair_groups, batch.pair_stream,
        filled.second, given_up,
    )  # fmt: skip
    return Written(*(column.cpu().numpy() for column in columns))
