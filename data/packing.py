"""Documents laid end to end: the examples of one microbatch become the arrays of a PackedBatch.

documents of examples ──▶ those that are compared, first ──▶ the others ──▶ one document of padding
                          [0, sentence_tokens)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FIRST_POSITION = 2  # XLM-R counts positions from padding_idx + 1


def _nothing() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Document:
    """A tokenised text in a task's form: ``context_length`` tokens of context, then its readers."""

    token_ids: np.ndarray  # (n,) int32
    position_ids: np.ndarray  # (n,)
    language: int | np.ndarray  # number of the language, of the whole or of each token (n,)
    context_length: int
    predicted: np.ndarray  # (m,) positions in the document
    targets: np.ndarray  # (m,)
    teacher: np.ndarray | None = None  # (Et,) the teacher's unit vector of the text, where there is one
    slots: np.ndarray = field(default_factory=_nothing)  # (k,) positions that pseudo tokens are written to
    draws: np.ndarray = field(default_factory=_nothing)  # (m,) in [0, 1), of a document that generates
    language_shown: bool = False  # whether a model that has vectors of languages adds them here


@dataclass(frozen=True, slots=True)
class Triplet:
    """An anchor, its positive and its negatives, by their numbers in an example, with the teacher's gaps."""

    anchor: int
    positive: int
    negatives: Sequence[int]
    teacher_gaps: Sequence[float]  # score of the positive minus that of each negative


@dataclass(frozen=True, slots=True)
class Example:
    """What one record becomes for one task: documents, which are compared with which, what is generated for them.

    The documents of ``generation`` are [text | placeholders], predicted at their placeholders, and are run first,
    without gradient. The ids that come out fill the slots of ``documents``: all of them in order, over documents.
    """

    stream: int
    documents: Sequence[Document]
    pairs: Sequence[tuple[int, int]] = ()  # numbers of documents in this example
    group: int = 0
    triplets: Sequence[Triplet] = ()
    generation: Sequence[Document] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all its documents, without those that only generate."""
        return sum(len(document.token_ids) for document in self.documents)


def pack(examples: Sequence[Example], tokens: int, pad_id: int, *, teacher_width: int = 0) -> dict[str, Any]:
    """Lay ``examples`` end to end in a stream of ``tokens`` tokens; the names are those of PackedBatch.

    ``teacher_width`` is the width of the teacher's vectors, 0 where the recipe asks for none.

    Raises:
        ValueError: the examples hold more than ``tokens`` tokens, which the planner never plans; or an example's
            generation does not fill its slots.

    """
    used = sum(example.tokens for example in examples)
    if used > tokens:
        raise ValueError(f"{used} tokens do not fit into a microbatch of {tokens}")
    compared = [example for example in examples if example.pairs or example.triplets]
    others = [example for example in examples if not (example.pairs or example.triplets)]
    generating = [Example(e.stream, e.generation) for e in [*compared, *others] if e.generation]
    documents: list[Document] = []
    pairs: list[tuple[int, int]] = []
    groups: list[int] = []
    pair_stream: list[int] = []
    triplets: list[tuple[int, int, Triplet]] = []  # stream, first document of the example
    document_stream: list[int] = []
    for example in [*compared, *others]:
        first = len(documents)
        documents.extend(example.documents)
        _check_generation(example)
        document_stream.extend([example.stream] * len(example.documents))
        for one, other in example.pairs:
            pairs.append((first + one, first + other))
            groups.append(example.group)
            pair_stream.append(example.stream)
        triplets.extend((example.stream, first, triplet) for triplet in example.triplets)
    sentence_documents = sum(len(example.documents) for example in compared)

    lengths = np.array([len(document.token_ids) for document in documents], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    context_lengths = np.array([document.context_length for document in documents], dtype=np.int64)
    token_ids = np.full(tokens, pad_id, dtype=np.int64)
    position_ids = np.full(tokens, FIRST_POSITION, dtype=np.int64)
    language_ids = np.zeros(tokens, dtype=np.int64)
    language_shown = np.zeros(tokens, dtype=bool)
    for start, document in zip(starts[:-1], documents, strict=True):
        end = start + len(document.token_ids)
        token_ids[start:end] = document.token_ids
        position_ids[start:end] = document.position_ids
        language_ids[start:end] = document.language
        language_shown[start:end] = document.language_shown
    predictions = [len(document.predicted) for document in documents]
    predicted = [start + document.predicted for start, document in zip(starts[:-1], documents, strict=True)]
    slots = [start + document.slots for start, document in zip(starts[:-1], documents, strict=True)]
    if used < tokens:
        starts = np.append(starts, tokens)
        context_lengths = np.append(context_lengths, tokens - used)
    return {
        "token_ids": token_ids,
        "position_ids": position_ids,
        "language_ids": language_ids,
        "language_shown": language_shown,
        "document_starts": starts,
        "context_lengths": context_lengths,
        "predicted": _joined(predicted),
        "targets": _joined([document.targets for document in documents]),
        "prediction_stream": np.repeat(np.array(document_stream, dtype=np.int64), predictions),
        "pairs": np.array(pairs, dtype=np.int64).reshape(-1, 2),
        "pair_groups": np.array(groups, dtype=np.uint64).view(np.int64),
        "pair_stream": np.array(pair_stream, dtype=np.int64),
        **_triplet_columns(triplets),
        "teacher_vectors": _teacher_vectors(documents[:sentence_documents], teacher_width),
        "sentence_tokens": int(starts[sentence_documents]) if sentence_documents else 0,
        "sentence_documents": sentence_documents,
        "slots": _joined(slots),
        "draws": np.concatenate([np.empty(0), *(document.draws for document in documents)]),
        "generation": pack(generating, sum(e.tokens for e in generating), pad_id) if generating else None,
    }


def _triplet_columns(triplets: Sequence[tuple[int, int, Triplet]]) -> dict[str, np.ndarray]:
    """Columns of Q triplets; the negatives are padded with -1 to the K of the one that has most."""
    most = max((len(triplet.negatives) for _, _, triplet in triplets), default=0)
    negatives = np.full((len(triplets), most), -1, dtype=np.int64)
    gaps = np.zeros((len(triplets), most), dtype=np.float32)
    for row, (_, first, triplet) in enumerate(triplets):
        negatives[row, : len(triplet.negatives)] = np.asarray(triplet.negatives) + first
        gaps[row, : len(triplet.negatives)] = triplet.teacher_gaps
    return {
        "triplet_anchor": np.array([first + t.anchor for _, first, t in triplets], dtype=np.int64),
        "triplet_positive": np.array([first + t.positive for _, first, t in triplets], dtype=np.int64),
        "triplet_negatives": negatives,
        "teacher_gaps": gaps,
        "triplet_stream": np.array([stream for stream, _, _ in triplets], dtype=np.int64),
    }


def _teacher_vectors(documents: Sequence[Document], width: int) -> np.ndarray:
    """(documents, width) float32; zeros where the teacher has not seen the text."""
    vectors = np.zeros((len(documents), width), dtype=np.float32)
    for row, document in enumerate(documents):
        if width and document.teacher is not None:
            vectors[row] = document.teacher
    return vectors


def _check_generation(example: Example) -> None:
    generated = sum(len(document.predicted) for document in example.generation)
    slots = sum(len(document.slots) for document in example.documents)
    if generated != slots:
        raise ValueError(f"an example generates {generated} pseudo tokens for {slots} slots")


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
