"""PackedBatch: one microbatch as plain tensors, the contract between data and model.

Letters used in shapes: T tokens of a microbatch (fixed by the recipe), N documents, M predicted positions,
P pairs of documents that mean the same, Q triplets of an anchor, its positive and K negatives, Et width of the
teacher's vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Documents of every task, laid end to end in one token stream.

    A document is ``[context | readers]``: context tokens attend to the context, readers attend to the context
    and to the readers. Documents that are compared with each other stand first, so that the alignment pool's
    first pass can run on the slice ``[0, sentence_tokens)`` alone. The unused tail of the stream is one
    document of padding.
    """

    token_ids: Tensor  # (T,) int64
    position_ids: Tensor  # (T,) int64, the first token of a text has position 2
    language_ids: Tensor  # (T,) int64, numbers of the store's languages
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

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray | int]) -> PackedBatch:
        """Wrap arrays made by ``data.packing`` (in this or in a worker process) without copying them."""
        values: dict[str, Any] = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in arrays.items()
        }
        return cls(**values)

    def to(self, device: torch.device | str) -> PackedBatch:
        """Move every tensor to ``device``; a batch that is already there is returned as it is."""
        if self.token_ids.device == torch.device(device):
            return self
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)
