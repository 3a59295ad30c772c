"""Microbatches and a model small enough to compare gradients in float64, with the real contracts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.batch import PackedBatch
from model.pretraining import PretrainingOutput

STREAMS = 5


def batch_of(
    *,
    features: Tensor | None = None,
    pairs: Tensor | None = None,
    pair_groups: Tensor | None = None,
    pair_stream: Tensor | None = None,
    prediction_stream: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_groups: Tensor | None = None,
) -> PackedBatch:
    """Return a microbatch of one-token documents; the token is the document's row in ``TinyEncoder``."""
    empty = torch.empty(0, dtype=torch.int64)
    documents = 0 if features is None else len(features)
    predictions = empty if prediction_stream is None else torch.zeros_like(prediction_stream)
    return PackedBatch(
        token_ids=empty if features is None else features,
        position_ids=torch.full((documents,), 2),
        language_ids=torch.zeros(documents, dtype=torch.int64),
        language_shown=torch.zeros(documents, dtype=torch.bool),
        document_starts=torch.arange(documents + 1),
        context_lengths=torch.ones(documents, dtype=torch.int64),
        predicted=predictions,
        targets=predictions,
        prediction_stream=empty if prediction_stream is None else prediction_stream,
        pairs=torch.empty(0, 2, dtype=torch.int64) if pairs is None else pairs,
        pair_groups=empty if pair_groups is None else pair_groups,
        pair_stream=empty if pair_stream is None else pair_stream,
        triplet_anchor=empty,
        triplet_positive=empty,
        triplet_negatives=torch.empty(0, 0, dtype=torch.int64),
        teacher_gaps=torch.empty(0, 0),
        triplet_stream=empty,
        teacher_vectors=torch.empty(documents, 0),
        negatives=empty if negatives is None else negatives,
        negative_groups=empty if negative_groups is None else negative_groups,
        sentence_tokens=documents,
        sentence_documents=documents,
    )


def step_of(pairs_of_microbatches: list[int], seed: int = 0) -> list[PackedBatch]:
    """Return microbatches with so many pairs each, and half as many hard negatives.

    Their documents, groups and streams are drawn.
    """
    generator, of_negatives = (torch.Generator().manual_seed(each) for each in (seed, 1000 + seed))

    def draw(high: int, count: int, by: torch.Generator = generator) -> Tensor:
        return torch.randint(high, (count,), generator=by)

    return [
        batch_of(
            features=torch.cat(
                [
                    draw(TinyEncoder.DOCUMENTS, 2 * count + 1),  # one document of no pair
                    draw(TinyEncoder.DOCUMENTS, count // 2, of_negatives),
                ]
            ),
            pairs=torch.randperm(2 * count + 1, generator=generator)[: 2 * count].view(count, 2),
            pair_groups=draw(12, count),
            pair_stream=draw(STREAMS, count),
            negatives=2 * count + 1 + torch.arange(count // 2),
            negative_groups=draw(12, count // 2, of_negatives),
        )
        for count in pairs_of_microbatches
    ]


def joined(microbatches: list[PackedBatch]) -> PackedBatch:
    """Return one microbatch with the documents and pairs of all."""
    first = [sum(batch.sentence_documents for batch in microbatches[:n]) for n in range(len(microbatches))]
    return batch_of(
        features=torch.cat([batch.token_ids for batch in microbatches]),
        pairs=torch.cat([batch.pairs + start for batch, start in zip(microbatches, first, strict=True)]),
        pair_groups=torch.cat([batch.pair_groups for batch in microbatches]),
        pair_stream=torch.cat([batch.pair_stream for batch in microbatches]),
        negatives=torch.cat([b.negatives + start for b, start in zip(microbatches, first, strict=True)]),
        negative_groups=torch.cat([batch.negative_groups for batch in microbatches]),
    )


class TinyEncoder(nn.Module):
    """A linear map of fixed features to unit vectors, and a learned temperature: float64, always the same."""

    DOCUMENTS = 64

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.features = torch.randn(self.DOCUMENTS, 7, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(torch.randn(7, 5, generator=generator, dtype=torch.float64))
        self.logarithm = nn.Parameter(torch.tensor(1.6, dtype=torch.float64))

    def forward(self, batch: PackedBatch) -> PretrainingOutput:
        vectors = nn.functional.normalize(self.features[batch.token_ids] @ self.weight, dim=1)
        nothing = vectors.new_empty(0)
        return PretrainingOutput(nothing.sum(), nothing, nothing.bool(), vectors, self.logarithm.exp())

    def gradients(self) -> list[Tensor]:
        """Return the gradients of weight and temperature; a missing one is an error."""
        found = [parameter.grad for parameter in self.parameters()]
        assert all(gradient is not None for gradient in found), "a parameter was left out of the graph"
        return [gradient for gradient in found if gradient is not None]
