"""Masked-token objective: cross entropy at the predicted positions, added up by stream.

Every task that predicts tokens (masked language modelling of one language or of a pair, CAMLM) is this one
objective; the tasks differ in the documents they make and in what is predicted there. The loss itself is the
model's ``prediction_total``, for which it is given weights[s] at every predicted position, s being its stream and
weights[s] = task weight / number of the task's terms in the whole step.
"""

from __future__ import annotations

from data.batch import PackedBatch
from model.pretraining import PretrainingOutput
from objectives.report import LossReport, report_by_stream


def masked_tokens(output: PretrainingOutput, batch: PackedBatch, streams: int) -> LossReport:
    """Return what was predicted, by stream."""
    return report_by_stream(
        output.prediction_losses, output.predictions_correct, batch.prediction_stream, streams
    )
