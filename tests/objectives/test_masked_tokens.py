"""Masked tokens: sums and counts per stream, from which a step's loss does not depend on how it is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.pretraining import PretrainingOutput
from objectives.masked_tokens import masked_tokens
from tests.objectives.microbatches import STREAMS, batch_of


def output_of(losses: Tensor, correct: Tensor) -> PretrainingOutput:
    return PretrainingOutput(losses.sum(), losses, correct, torch.empty(0, 3), torch.tensor(20.0))


def test_losses_are_added_up_by_stream() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    correct = torch.tensor([True, False, True, True])
    report = masked_tokens(
        output_of(losses, correct), batch_of(prediction_stream=torch.tensor([3, 0, 3, 1])), STREAMS
    )
    assert report.sums.tolist() == [2.0, 8.0, 0.0, 5.0, 0.0]
    assert report.terms.tolist() == [1, 1, 0, 2, 0]
    assert report.correct.tolist() == [0, 1, 0, 2, 0]


def test_without_predictions_the_sums_are_zero() -> None:
    losses = torch.empty(0)
    report = masked_tokens(output_of(losses, torch.empty(0, dtype=torch.bool)), batch_of(), STREAMS)
    assert not report.sums.any() and not report.terms.any()


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_sums_do_not_depend_on_the_microbatch(cut: int) -> None:
    generator = torch.Generator().manual_seed(2)
    losses = torch.rand(20, generator=generator, dtype=torch.float64)
    correct = torch.rand(20, generator=generator) < 0.5
    stream = torch.randint(STREAMS, (20,), generator=generator)
    whole, *parts = (
        masked_tokens(
            output_of(losses[rows], correct[rows]), batch_of(prediction_stream=stream[rows]), STREAMS
        )
        for rows in (slice(0, 20), slice(0, cut), slice(cut, 20))
    )
    for value, *of_parts in zip(whole, *parts, strict=True):
        torch.testing.assert_close(value, sum(of_parts), rtol=1e-14, atol=0)
