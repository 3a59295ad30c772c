"""The table of tasks: which records a task reads, how much room they need, and what documents they become.

A new task is a new row of TASKS, a settings class beside it and the function that makes its documents. What a row
is stands in data/task.py; a task that is more than a function has a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from data.adaptive_margin import AdaptiveMarginConfig, InBatchMarginConfig, make_adaptive_margin
from data.back_translation import BackTranslationConfig, make_btmlm, room_of_text_and_pseudo
from data.masking import choose, corrupt
from data.mixed_alignment import MixedAlignmentConfig, make_mixed_alignment, room_of_text_and_mixed
from data.packing import FIRST_POSITION, Document, Example
from data.recipe import Section
from data.task import (
    SPECIALS,
    Draw,
    Made,
    Material,
    Task,
    TaskConfig,
    TextSegment,
    context_document,
    room_of_text,
    room_of_texts,
    wrapped,
)


class MaskedConfig(TaskConfig):
    """MMLM and TLM: the rate at which tokens are predicted."""

    mask_rate: float = Field(0.15, gt=0, lt=1)


class CrossAttentionMaskedConfig(TaskConfig):
    """CAMLM: the rate is per side; chosen tokens are always shown as <mask>."""

    mask_rate: float = Field(0.25, gt=0, lt=1)


class TranslationAlignmentConfig(TaskConfig):
    """How many texts of a multi-way row stand in an example, each compared with each: 2 is the pair alone.

    With more, a text is encoded once and compared several times. The further texts are drawn evenly from the row.
    """

    texts: int = Field(2, ge=2, le=16)


class TasksConfig(Section):
    """The tasks of a recipe; one that is left out is off."""

    mmlm: MaskedConfig | None = None
    tlm: MaskedConfig | None = None
    camlm: CrossAttentionMaskedConfig | None = None
    translation_alignment: TranslationAlignmentConfig | None = None
    mixed_alignment: MixedAlignmentConfig | None = None
    btmlm: BackTranslationConfig | None = None
    adaptive_margin: AdaptiveMarginConfig | None = None
    in_batch_margin: InBatchMarginConfig | None = None  # rides on the pairs of the alignment tasks

    @model_validator(mode="after")
    def _has_pairs_to_ride_on(self) -> TasksConfig:
        if self.in_batch_margin is not None and not (self.translation_alignment or self.mixed_alignment):
            raise ValueError(
                "in_batch_margin rides on the pairs of translation_alignment or mixed_alignment, and neither is on"
            )
        return self

    @property
    def generates(self) -> bool:
        """Whether the model writes pseudo tokens for some task."""
        mixed = self.mixed_alignment
        return self.btmlm is not None or (mixed is not None and mixed.generates)

    def enabled(self) -> dict[str, TaskConfig]:
        """Name -> settings of the tasks that are on and have records of their own, in the order of the table."""
        return {name: getattr(self, name) for name in TASKS if getattr(self, name) is not None}


def _room_of_pair(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str], config: TaskConfig
) -> np.ndarray:
    return np.minimum(lengths[0] + lengths[1] + 2 * SPECIALS, maximum)


def make_mmlm(segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig) -> Made:
    """Multilingual masked language modelling: [x | -], masked tokens of x are predicted (BERT, XLM-R)."""
    assert isinstance(config, MaskedConfig)
    (segment,) = segments
    masked = corrupt(
        segment.ids[: material.maximum_tokens - SPECIALS],
        config.mask_rate,
        material.tokenizer.mask_id,
        draw.random("mask"),
    )
    ids = wrapped(masked.shown, material.tokenizer)
    document = context_document(ids, segment.language, masked.predicted + 1, masked.targets)
    return Made(Example(draw.stream, [document]))


def make_tlm(segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig) -> Made:
    """Translation language modelling: [x y | -], masked tokens of both are predicted (XLM, Conneau 2019)."""
    assert isinstance(config, MaskedConfig)
    tokenizer = material.tokenizer
    first, second = _ordered(segments, draw)
    left, right = _fitted(first.ids, second.ids, material.maximum_tokens)
    both = corrupt(np.concatenate([left, right]), config.mask_rate, tokenizer.mask_id, draw.random("mask"))
    x, y = wrapped(both.shown[: len(left)], tokenizer), wrapped(both.shown[len(left) :], tokenizer)
    y[0] = tokenizer.eos_id
    predicted = both.predicted + 1 + SPECIALS * (both.predicted >= len(left))
    language = np.repeat([first.language, second.language], [len(x), len(y)])
    return Made(
        Example(draw.stream, [context_document(np.concatenate([x, y]), language, predicted, both.targets)])
    )


def make_camlm(segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig) -> Made:
    """Cross-attention masked language modelling (ERNIE-M, Ouyang et al., 2021).

    A masked token of one side is predicted from the unmasked tokens of the OTHER side, so the pair becomes two
    documents, [y unmasked | x masked] and [x unmasked | y masked]: the own side's context is in the other
    document and can not leak at any depth. Tokens keep their positions of the pair layout.
    """
    assert isinstance(config, CrossAttentionMaskedConfig)
    tokenizer = material.tokenizer
    first, second = _ordered(segments, draw)
    left, right = _fitted(first.ids, second.ids, material.maximum_tokens)
    x, y = wrapped(left, tokenizer), wrapped(right, tokenizer)
    y[0] = tokenizer.eos_id
    random = draw.random("mask")
    x_masked = choose(len(left), config.mask_rate, random) + 1
    y_masked = choose(len(right), config.mask_rate, random) + 1
    x_positions = np.arange(len(x)) + FIRST_POSITION
    y_positions = np.arange(len(y)) + FIRST_POSITION + len(x)
    x_side = _Side(x, x_positions, x_masked, first.language)
    y_side = _Side(y, y_positions, y_masked, second.language)
    mask_id = tokenizer.mask_id
    return Made(Example(draw.stream, [_reading(y_side, x_side, mask_id), _reading(x_side, y_side, mask_id)]))


def make_translation_alignment(
    segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig
) -> Made:
    """Contrastive alignment of a sentence with its translations (InfoXLM, LaBSE), each with each."""
    documents = [
        context_document(
            wrapped(segments[i].ids[: material.maximum_tokens - SPECIALS], material.tokenizer),
            segments[i].language,
            teacher=segments[i].teacher,
        )
        for i in draw.random("order").permutation(len(segments))
    ]
    pairs = list(combinations(range(len(documents)), 2))
    return Made(Example(draw.stream, documents, pairs, segments[0].group))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("mmlm", "monolingual", "sentences", "masked", room_of_text, make_mmlm),
        Task("tlm", "bilingual", "pairs", "masked", _room_of_pair, make_tlm),
        Task("camlm", "bilingual", "pairs", "masked", _room_of_pair, make_camlm),
        Task(
            "translation_alignment",
            "bilingual",
            "pairs",
            "alignment",
            room_of_texts,
            make_translation_alignment,
        ),
        Task(
            "mixed_alignment",
            "monolingual",
            "texts",
            "alignment",
            room_of_text_and_mixed,
            make_mixed_alignment,
            with_row=True,
        ),
        Task(
            "adaptive_margin",
            "bilingual",
            "triplets",
            "margin",
            room_of_texts,
            make_adaptive_margin,
        ),
        Task("btmlm", "monolingual", "sentences", "masked", room_of_text_and_pseudo, make_btmlm),
    )
}


class _Side(NamedTuple):
    """One side of a pair in CAMLM: its tokens, their places in the pair, and which of them are masked."""

    ids: np.ndarray
    positions: np.ndarray
    masked: np.ndarray
    language: int


def _reading(seen: _Side, read: _Side, mask_id: int) -> Document:
    """[unmasked tokens of ``seen`` | masked tokens of ``read``]: one half of CAMLM."""
    context = np.delete(np.arange(len(seen.ids)), seen.masked)
    readers = len(read.masked)
    return Document(
        np.concatenate([seen.ids[context], np.full(readers, mask_id, dtype=np.int32)]),
        np.concatenate([seen.positions[context], read.positions[read.masked]]),
        np.repeat([seen.language, read.language], [len(context), readers]),
        len(context),
        len(context) + np.arange(readers),
        read.ids[read.masked],
    )


def _ordered(segments: Sequence[TextSegment], draw: Draw) -> tuple[TextSegment, TextSegment]:
    """Both orders of a pair occur with equal probability (InfoXLM)."""
    first, second = segments
    return (first, second) if draw.random("order").random() < 0.5 else (second, first)


def _fitted(left: np.ndarray, right: np.ndarray, maximum: int) -> tuple[np.ndarray, np.ndarray]:
    """Shorten the longer side first until the pair fits into ``maximum`` tokens with its four special ones."""
    room = maximum - 2 * SPECIALS
    if len(left) + len(right) <= room:
        return left, right
    if len(left) >= len(right):
        kept = max(room - len(right), room - room // 2)
        return left[:kept], right[: room - kept]
    kept = max(room - len(left), room - room // 2)
    return left[: room - kept], right[:kept]
