"""Documents laid end to end: the examples of one microbatch become the arrays of a PackedBatch.

documents of examples ──▶ those that are compared, first ──▶ the others ──▶ one document of padding
                          [0, sentence_tokens)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.laid import FIRST_POSITION, Laid, Triplets
from data.ragged import row_of_each, starts_of


def pack(blocks: Sequence[Laid], tokens: int, pad_id: int, *, teacher_width: int = 0) -> dict[str, Any]:
    """Lay ``blocks`` end to end in a stream of ``tokens`` tokens; the names are those of PackedBatch.

    ``teacher_width`` is the width of the teacher's vectors, 0 where the recipe asks for none.

    Raises:
        ValueError: the examples hold more than ``tokens`` tokens, which the planner never plans; an example's
            generation does not fill its slots; or something is predicted in documents that are compared, whose hidden
            states would be read twice.

    """
    blocks = [block for block in blocks if len(block)]
    used = sum(len(block.token_ids) for block in blocks)
    if used > tokens:
        raise ValueError(f"{used} tokens do not fit into a microbatch of {tokens}")
    compared = [block for block in blocks if block.compared]
    ordered = [*compared, *(block for block in blocks if not block.compared)]
    _check_generation(ordered)
    if any(len(block.predicted) for block in compared):
        raise ValueError("documents that are compared have tokens to predict: make two examples of them")
    lengths = _joined([block.lengths for block in ordered])
    starts = starts_of(lengths)
    predictions = _joined([block.predictions for block in ordered])
    # The number of each block's first document.
    firsts = starts_of(np.array([len(block.lengths) for block in ordered], np.int64))
    moved = list(zip(firsts, ordered, strict=True))
    slot_documents = _joined([first + block.slot_documents for first, block in moved])
    sentence_documents = sum(len(block.lengths) for block in compared)
    sentence_tokens = sum(len(block.token_ids) for block in compared)
    context_lengths = _joined([block.context_lengths for block in ordered])
    document_starts = np.append(starts, used)
    if used < tokens:
        document_starts = np.append(document_starts, tokens)
        context_lengths = np.append(context_lengths, tokens - used)
    generating = [block.generation for block in ordered if block.generation is not None]
    of_generation = sum(len(block.token_ids) for block in generating)
    return {
        "token_ids": _padded([block.token_ids for block in ordered], tokens, pad_id),
        "position_ids": _padded([block.position_ids for block in ordered], tokens, FIRST_POSITION),
        "language_ids": _padded([block.languages for block in ordered], tokens, 0),
        "language_shown": _padded(
            [np.repeat(block.shown, block.lengths) for block in ordered], tokens, 0
        ).astype(bool),
        "document_starts": document_starts,
        "context_lengths": context_lengths,
        "predicted": np.repeat(starts, predictions) + _joined([block.predicted for block in ordered]),
        "targets": _joined([block.targets for block in ordered]),
        "prediction_stream": np.repeat(
            _joined([np.repeat(block.streams, block.documents) for block in ordered]), predictions
        ),
        "pairs": np.concatenate([np.empty((0, 2), np.int64), *(f + block.pairs for f, block in moved)]),
        "pair_groups": np.concatenate(
            [np.empty(0, np.uint64), *(block.groups[block.pair_examples] for block in compared)]
        ).view(np.int64),
        "pair_stream": _joined([block.streams[block.pair_examples] for block in ordered]),
        "negatives": _joined([first + block.negatives for first, block in moved]),
        "negative_groups": np.concatenate(
            [np.empty(0, np.uint64), *(block.negative_groups for block in ordered)]
        ).view(np.int64),
        **_triplet_columns([(first, block.triplets) for first, block in moved]),
        "triplet_stream": _joined([block.streams[block.triplet_examples] for block in ordered]),
        "teacher_vectors": _teacher_vectors(compared, sentence_documents, teacher_width),
        "sentence_tokens": sentence_tokens,
        "sentence_documents": sentence_documents,
        "slots": starts[slot_documents] + _joined([block.slots for block in ordered]),
        "draws": np.concatenate([np.empty(0), *(block.draws for block in ordered)]),
        "generation": pack(generating, of_generation, pad_id) if of_generation else None,
    }


def _triplet_columns(triplets: Sequence[tuple[int, Triplets]]) -> dict[str, np.ndarray]:
    """Columns of Q triplets; the negatives are padded with -1 to the K of the one that has most."""
    most = max((found.negatives.shape[1] for _, found in triplets), default=0)
    count = sum(len(found.anchors) for _, found in triplets)
    negatives = np.full((count, most), -1, dtype=np.int64)
    gaps = np.zeros((count, most), dtype=np.float32)
    row = 0
    for first, found in triplets:
        rows, width = found.negatives.shape
        negatives[row : row + rows, :width] = np.where(found.negatives < 0, -1, found.negatives + first)
        gaps[row : row + rows, :width] = found.gaps
        row += rows
    return {
        "triplet_anchor": _joined([first + found.anchors for first, found in triplets]),
        "triplet_positive": _joined([first + found.positives for first, found in triplets]),
        "triplet_negatives": negatives,
        "teacher_gaps": gaps,
    }


def _teacher_vectors(blocks: Sequence[Laid], documents: int, width: int) -> np.ndarray:
    """(documents, width) float32; zeros where the teacher has not seen the text."""
    vectors = np.zeros((documents, width), dtype=np.float32)
    row = 0
    for block in blocks:
        count = len(block.lengths)
        if width and block.teacher is not None:
            vectors[row : row + count] = block.teacher
        row += count
    return vectors


def _check_generation(blocks: Sequence[Laid]) -> None:
    """The ids that are generated for an example are as many as its slots."""
    for block in blocks:
        of_document = row_of_each(block.documents)
        slots = np.bincount(of_document[block.slot_documents], minlength=len(block))
        generated = np.zeros(len(block), np.int64)
        if block.generation is not None:
            of_document = row_of_each(block.generation.documents)
            generated = np.bincount(of_document, block.generation.predictions, len(block)).astype(np.int64)
        for wrong in np.flatnonzero(slots != generated):
            raise ValueError(
                f"an example generates {generated[wrong]} pseudo tokens for {slots[wrong]} slots"
            )


def _padded(parts: Sequence[np.ndarray], tokens: int, value: int) -> np.ndarray:
    """(tokens,) int64: ``parts`` end to end, then ``value``."""
    whole = np.full(tokens, value, dtype=np.int64)
    if parts:
        np.concatenate(parts, out=whole[: sum(map(len, parts))], casting="unsafe")
    return whole


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64, copy=False) if parts else np.empty(0, dtype=np.int64)
