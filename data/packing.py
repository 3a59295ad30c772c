"""Documents laid end to end: the examples of one microbatch become the arrays of a PackedBatch.

documents of examples ──▶ those that are compared, first ──▶ the others ──▶ one document of padding
                          [0, sentence_tokens)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FIRST_POSITION = 2  # XLM-R counts positions from padding_idx + 1


@dataclass(frozen=True, slots=True)
class Document:
    """A tokenised text in a task's form: ``context_length`` tokens of context, then its readers."""

    token_ids: np.ndarray  # (n,) int32
    position_ids: np.ndarray  # (n,)
    language: int | np.ndarray  # number of the language, of the whole or of each token (n,)
    context_length: int
    predicted: np.ndarray  # (m,) positions in the document
    targets: np.ndarray  # (m,)


@dataclass(frozen=True, slots=True)
class Example:
    """What one record becomes for one task: documents, and which of them mean the same."""

    stream: int
    documents: Sequence[Document]
    pairs: Sequence[tuple[int, int]] = ()  # numbers of documents in this example
    group: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all its documents."""
        return sum(len(document.token_ids) for document in self.documents)


def pack(examples: Sequence[Example], tokens: int, pad_id: int) -> dict[str, np.ndarray | int]:
    """Lay ``examples`` end to end in a stream of ``tokens`` tokens; the names are those of PackedBatch.

    Raises:
        ValueError: the examples hold more than ``tokens`` tokens, which the planner never plans.

    """
    used = sum(example.tokens for example in examples)
    if used > tokens:
        raise ValueError(f"{used} tokens do not fit into a microbatch of {tokens}")
    compared = [example for example in examples if example.pairs]
    others = [example for example in examples if not example.pairs]
    documents: list[Document] = []
    pairs: list[tuple[int, int]] = []
    groups: list[int] = []
    pair_stream: list[int] = []
    document_stream: list[int] = []
    for example in [*compared, *others]:
        first = len(documents)
        documents.extend(example.documents)
        document_stream.extend([example.stream] * len(example.documents))
        for one, other in example.pairs:
            pairs.append((first + one, first + other))
            groups.append(example.group)
            pair_stream.append(example.stream)
    sentence_documents = sum(len(example.documents) for example in compared)

    lengths = np.array([len(document.token_ids) for document in documents], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    context_lengths = np.array([document.context_length for document in documents], dtype=np.int64)
    token_ids = np.full(tokens, pad_id, dtype=np.int64)
    position_ids = np.full(tokens, FIRST_POSITION, dtype=np.int64)
    language_ids = np.zeros(tokens, dtype=np.int64)
    for start, document in zip(starts[:-1], documents, strict=True):
        end = start + len(document.token_ids)
        token_ids[start:end] = document.token_ids
        position_ids[start:end] = document.position_ids
        language_ids[start:end] = document.language
    predictions = [len(document.predicted) for document in documents]
    predicted = [start + document.predicted for start, document in zip(starts[:-1], documents, strict=True)]
    if used < tokens:
        starts = np.append(starts, tokens)
        context_lengths = np.append(context_lengths, tokens - used)
    return {
        "token_ids": token_ids,
        "position_ids": position_ids,
        "language_ids": language_ids,
        "document_starts": starts,
        "context_lengths": context_lengths,
        "predicted": _joined(predicted),
        "targets": _joined([document.targets for document in documents]),
        "prediction_stream": np.repeat(np.array(document_stream, dtype=np.int64), predictions),
        "pairs": np.array(pairs, dtype=np.int64).reshape(-1, 2),
        "pair_groups": np.array(groups, dtype=np.uint64).view(np.int64),
        "pair_stream": np.array(pair_stream, dtype=np.int64),
        "sentence_tokens": int(starts[sentence_documents]) if sentence_documents else 0,
        "sentence_documents": sentence_documents,
    }


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
