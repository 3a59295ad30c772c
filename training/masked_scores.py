"""Sums of a masked set's losses and hits, and the scores that they give by task and language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.batch import PackedBatch
from model.pretraining import PretrainingOutput


class MaskedSet(NamedTuple):
    """Microbatches with fixed masks, and the names of their streams."""

    batches: list[PackedBatch]
    names: list[str]  # "mmlm/de", "camlm/de-en", "camlm_control/de-en"


def sums_of(output: PretrainingOutput, batch: PackedBatch, streams: int) -> np.ndarray:
    """(streams, 3): losses, hits and predictions of ``batch``, added up by stream."""
    sums = np.zeros((streams, 3))
    stream = batch.prediction_stream.cpu().numpy()
    for column, values in enumerate((output.prediction_losses, output.predictions_correct)):
        np.add.at(sums[:, column], stream, values.double().cpu().numpy())
    np.add.at(sums[:, 2], stream, 1.0)
    return sums


def scores_of(total: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """``masked/TASK/loss``, ``.../accuracy`` and ``.../accuracy/LANGUAGE`` of ``total`` (streams, 3)."""
    scores: dict[str, float] = {}
    for task in dict.fromkeys(name.split("/")[0] for name in names):
        members = [i for i, name in enumerate(names) if name.startswith(task + "/")]
        loss, correct, count = total[members].sum(axis=0)
        scores[f"masked/{task}/loss"] = loss / count
        scores[f"masked/{task}/accuracy"] = correct / count
        for i in members:
            language = names[i].removeprefix(task + "/")
            scores[f"masked/{task}/accuracy/{language}"] = total[i, 1] / max(total[i, 2], 1.0)
    return scores
