"""PackedBatch: one microbatch as plain tensors, the contract between data and model.

Letters used in shapes: T tokens of a microbatch (fixed by the recipe), N documents, M predicted positions,
P pairs of documents that mean the same, H documents that pairs are compared with beside each other, Q triplets of an
anchor, its positive and K negatives, Et width of the teacher's vectors, S pseudo tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _no_numbers() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Documents of every task, laid end to end in one token stream.

    A document is ``[context | readers]``: context tokens attend to the context, readers attend to the context
    and to the readers. Documents that are compared with each other stand first, so that the alignment pool's
    first pass can run on the slice ``[0, sentence_tokens)`` alone; nothing is predicted in them. The
    unused tail of the stream is one document of padding.

    Pseudo tokens are those that the model itself writes before the batch is read: ``generation`` holds documents
    [text | placeholders], and what is generated at its predicted positions belongs, in order, into ``slots``.
    """

    token_ids: Tensor  # (T,) int64
    position_ids: Tensor  # (T,) int64, the first token of a text has position 2
    language_ids: Tensor  # (T,) int64, numbers of the store's languages
    language_shown: Tensor  # (T,) bool, whether the model is told the language; one value a document
    document_starts: Tensor  # (N + 1,) int64, the last entry is T
    context_lengths: Tensor  # (N,) int64
    predicted: Tensor  # (M,) int64, positions in the stream
    targets: Tensor  # (M,) int64, token ids
    prediction_stream: Tensor  # (M,) int64, number of the (task, language) stream
    pairs: Tensor  # (P, 2) int64, document numbers
    pair_groups: Tensor  # (P,) int64, pairs of one group are never each other's negatives
    pair_stream: Tensor  # (P,) int64
    triplet_anchor: Tensor  # (Q,) int64, document numbers
    triplet_positive: Tensor  # (Q,) int64
    triplet_negatives: Tensor  # (Q, K) int64, -1 where a triplet has fewer
    teacher_gaps: Tensor  # (Q, K) float32, the teacher's score of the positive minus that of each negative
    triplet_stream: Tensor  # (Q,) int64
    teacher_vectors: Tensor  # (sentence_documents, Et) float32 of unit length, zeros where there is none
    sentence_tokens: int
    sentence_documents: int
    negatives: Tensor = field(default_factory=_no_numbers)  # (H,) int64, document numbers
    negative_groups: Tensor = field(default_factory=_no_numbers)  # (H,) int64, as those of pairs
    slots: Tensor = field(default_factory=_no_numbers)  # (S,) int64, positions of pseudo tokens in the stream
    draws: Tensor = field(default_factory=_no_numbers)  # (M,) float64 in [0, 1), where ids are to be drawn
    generation: PackedBatch | None = None  # its M is this batch's S

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> PackedBatch:
        """Wrap arrays made by ``data.packing`` (in this or in a worker process) without copying them."""
        values: dict[str, Any] = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in arrays.items()
        }
        if values["generation"] is not None:
            values["generation"] = cls.from_arrays(values["generation"])
        return cls(**values)

    @classmethod
    def empty(cls, device: torch.device | str) -> PackedBatch:
        """A batch of no tokens: what a rank runs that has nothing where others have something."""
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return cls(
            token_ids=nothing, position_ids=nothing, language_ids=nothing, language_shown=nothing.bool(),
            document_starts=torch.zeros(1, dtype=torch.int64, device=device), context_lengths=nothing,
            predicted=nothing, targets=nothing, prediction_stream=nothing,
            pairs=nothing.view(0, 2), pair_groups=nothing, pair_stream=nothing,
            triplet_anchor=nothing, triplet_positive=nothing, triplet_negatives=nothing.view(0, 0),
            teacher_gaps=nothing.float().view(0, 0), triplet_stream=nothing,
            teacher_vectors=nothing.float().view(0, 0), sentence_tokens=0, sentence_documents=0,
            negatives=nothing, negative_groups=nothing, slots=nothing, draws=nothing.double(),
        )  # fmt: skip

    def filled(self, ids: Tensor) -> PackedBatch:
        """The batch with the pseudo tokens ``ids`` (S,) in their slots; this one stays as it is."""
        if ids.shape != self.slots.shape:
            raise ValueError(f"{len(ids)} pseudo tokens for {len(self.slots)} slots")
        return replace(self, token_ids=self.token_ids.index_copy(0, self.slots, ids))

    def without_pairs(self, given_up: Tensor) -> PackedBatch:
        """The batch without the pairs that ``given_up`` (P,) names; their documents stay, and are compared no more."""
        kept = ~given_up
        columns = {name: getattr(self, name)[kept] for name in ("pairs", "pair_groups", "pair_stream")}
        return replace(self, **columns)

    def to(self, device: torch.device | str) -> PackedBatch:
        """Move every tensor to ``device``; a batch that is already there is returned as it is."""
        if self.token_ids.device == torch.device(device):
            return self
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        generation = None if self.generation is None else self.generation.to(device)
        return replace(self, **moved, generation=generation)
