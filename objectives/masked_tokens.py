"""Masked-token objective: cross entropy at the predicted positions, added up by stream.

Every task that predicts tokens (masked language modelling of one language or of a pair, CAMLM) is this one
objective; the tasks differ in the documents they make and in what is predicted there.
"""

from __future__ import annotations

from data.batch import PackedBatch
from model.pretraining import PretrainingOutput
from objectives.report import LossReport, report_by_stream


def masked_token_loss(output: PretrainingOutput, batch: PackedBatch, streams: int) -> LossReport:
    """Return the sums of ``prediction_losses`` over ``streams`` streams, differentiable; see LossReport.

    A step's loss is ``sums @ weights`` with weights[s] = task weight / number of the task's terms in the
    whole step. Without any prediction the sums are zero and still part of the graph.
    """
    return report_by_stream(
        output.prediction_losses, output.predictions_correct, batch.prediction_stream, streams
    )
