"""The table of tasks: which records a task reads, how much room they need, and what documents they become.

A new task is a new row of TASKS, a settings class beside it and the function that makes its documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from data.keys import generator
from data.lexicon import PIVOT, Lexicon, written_without_spaces
from data.masking import choose, corrupt
from data.mixing import MixedText, mix
from data.packing import FIRST_POSITION, Document, Example
from data.recipe import Section
from data.tokenizer import Tokenizer

SPECIALS = 2  # <s> and </s> of a text

# Room for a mixed text, times the tokens of its original: translations are cut into more pieces than the words
# that they replace. Measured on the demo, so that about 3 texts in 100 are cut in every language: most where a
# word is one character or two, and in the language that has the longest dictionaries.
_MIXED_GROWTH = 1.25
_MIXED_GROWTH_OF_PIVOT = 1.4
_MIXED_GROWTH_WITHOUT_SPACES = 2.0
_MIXED_FURTHER = 5  # tokens; one word more or less tells in a short text


class TaskConfig(Section):
    """What every task has: its part of its side's tokens, and the factor of its loss."""

    weight: float = Field(1.0, gt=0)
    loss_weight: float = Field(1.0, ge=0)


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


class MixedAlignmentConfig(TaskConfig):
    """Mixed-language alignment: the part of the translatable phrases that are translated."""

    replacement_rate: float = Field(0.7, gt=0, le=1)


class TasksConfig(Section):
    """The tasks of a recipe; one that is left out is off."""

    mmlm: MaskedConfig | None = None
    tlm: MaskedConfig | None = None
    camlm: CrossAttentionMaskedConfig | None = None
    translation_alignment: TranslationAlignmentConfig | None = None
    mixed_alignment: MixedAlignmentConfig | None = None

    def enabled(self) -> dict[str, TaskConfig]:
        """Name -> settings of the tasks that are on, in the order of the table."""
        return {name: getattr(self, name) for name in TASKS if getattr(self, name) is not None}


class TextSegment(NamedTuple):
    """One text of a record as the store holds it."""

    language: int  # number of the language
    ids: np.ndarray  # (n,) int32, without special tokens
    text: str
    group: int  # equal for the same sentence and for translations of one sentence


class Material(NamedTuple):
    """What a task's function may draw on."""

    tokenizer: Tokenizer
    lexicon: Lexicon | None
    languages: tuple[str, ...]
    maximum_tokens: int


class Draw(NamedTuple):
    """One record at one time: what keys its randomness, and the tokens that the planner set aside for it."""

    seed: int
    stream: int
    stream_name: str
    record: int
    epoch: int
    room: int

    def random(self, site: str) -> np.random.Generator:
        """The random numbers of this record and epoch for one use."""
        return generator(self.seed, self.stream_name, self.record, self.epoch, site)


class Made(NamedTuple):
    """An example, or None where the record gives none; and how its text was mixed, where it was."""

    example: Example | None
    mixed: MixedText | None = None
    cut: bool = False  # the mixed text lost its end for want of room


Room = Callable[[Sequence[np.ndarray], int, Sequence[str]], np.ndarray]
Make = Callable[[Sequence[TextSegment], Draw, Material, "TaskConfig"], Made]


@dataclass(frozen=True, slots=True)
class Task:
    """A row of the table."""

    name: str
    side: Literal["monolingual", "bilingual"]  # whose budget it spends
    reads: Literal["sentences", "texts", "pairs"]  # monolingual corpora; every text; pairs of translations
    loss: Literal["masked", "alignment"]
    room: Room  # lengths of the segments [(n,), ...], longest document, languages -> tokens to set aside (n,)
    make: Make
    needs_lexicon: bool = False


def _room_of_text(lengths: Sequence[np.ndarray], maximum: int, _: Sequence[str]) -> np.ndarray:
    return np.minimum(lengths[0] + SPECIALS, maximum)


def _room_of_pair(lengths: Sequence[np.ndarray], maximum: int, _: Sequence[str]) -> np.ndarray:
    return np.minimum(lengths[0] + lengths[1] + 2 * SPECIALS, maximum)


def _room_of_texts(lengths: Sequence[np.ndarray], maximum: int, _: Sequence[str]) -> np.ndarray:
    """Of each text by itself; a length below zero says that the row has no such text."""
    rooms = [np.where(length >= 0, np.minimum(length + SPECIALS, maximum), 0) for length in lengths]
    return np.sum(rooms, axis=0)


def _room_of_text_and_mixed(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str]
) -> np.ndarray:
    (language,) = languages
    growth = _MIXED_GROWTH_OF_PIVOT if language == PIVOT else _MIXED_GROWTH
    if written_without_spaces(language):
        growth = _MIXED_GROWTH_WITHOUT_SPACES
    mixed = (lengths[0] * growth).astype(np.int64) + _MIXED_FURTHER + SPECIALS
    return _room_of_text(lengths, maximum, languages) + np.minimum(mixed, maximum)


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
    ids = _wrapped(masked.shown, material.tokenizer)
    document = _context(ids, segment.language, masked.predicted + 1, masked.targets)
    return Made(Example(draw.stream, [document]))


def make_tlm(segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig) -> Made:
    """Translation language modelling: [x y | -], masked tokens of both are predicted (XLM, Conneau 2019)."""
    assert isinstance(config, MaskedConfig)
    tokenizer = material.tokenizer
    first, second = _ordered(segments, draw)
    left, right = _fitted(first.ids, second.ids, material.maximum_tokens)
    both = corrupt(np.concatenate([left, right]), config.mask_rate, tokenizer.mask_id, draw.random("mask"))
    x, y = _wrapped(both.shown[: len(left)], tokenizer), _wrapped(both.shown[len(left) :], tokenizer)
    y[0] = tokenizer.eos_id
    predicted = both.predicted + 1 + SPECIALS * (both.predicted >= len(left))
    language = np.repeat([first.language, second.language], [len(x), len(y)])
    return Made(Example(draw.stream, [_context(np.concatenate([x, y]), language, predicted, both.targets)]))


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
    x, y = _wrapped(left, tokenizer), _wrapped(right, tokenizer)
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
        _context(
            _wrapped(segments[i].ids[: material.maximum_tokens - SPECIALS], material.tokenizer),
            segments[i].language,
        )
        for i in draw.random("order").permutation(len(segments))
    ]
    pairs = list(combinations(range(len(documents)), 2))
    return Made(Example(draw.stream, documents, pairs, segments[0].group))


def make_mixed_alignment(
    segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig
) -> Made:
    """Contrastive alignment of a text with its mixed-language form (US20220019743A1), either side at random.

    A text that was cut to the longest length is mixed as far as it was kept: its partner says nothing more.
    """
    assert isinstance(config, MixedAlignmentConfig) and material.lexicon is not None
    (segment,) = segments
    tokenizer, language = material.tokenizer, material.languages[segment.language]
    ids = segment.ids[: material.maximum_tokens - SPECIALS]
    text = segment.text
    if len(ids) == material.maximum_tokens - SPECIALS:  # the store cut the ids of a longer text to as many
        text = tokenizer.covered(text, len(ids))
    mixed = mix(text, language, material.lexicon, config.replacement_rate, draw.random("mixing"))
    if mixed is None:
        return Made(None)
    (whole,) = tokenizer.encode([mixed.text])
    kept = whole[: draw.room - len(ids) - 2 * SPECIALS]
    if np.array_equal(kept, ids[: len(kept)]):  # what was translated stood behind the cut
        return Made(None)
    documents = [_context(_wrapped(side, tokenizer), segment.language) for side in (ids, kept)]
    if draw.random("side").random() < 0.5:
        documents.reverse()
    example = Example(draw.stream, documents, pairs=[(0, 1)], group=segment.group)
    return Made(example, mixed, len(kept) < len(whole))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("mmlm", "monolingual", "sentences", "masked", _room_of_text, make_mmlm),
        Task("tlm", "bilingual", "pairs", "masked", _room_of_pair, make_tlm),
        Task("camlm", "bilingual", "pairs", "masked", _room_of_pair, make_camlm),
        Task(
            "translation_alignment",
            "bilingual",
            "pairs",
            "alignment",
            _room_of_texts,
            make_translation_alignment,
        ),
        Task(
            "mixed_alignment",
            "monolingual",
            "texts",
            "alignment",
            _room_of_text_and_mixed,
            make_mixed_alignment,
            needs_lexicon=True,
        ),
    )
}


def _wrapped(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """<s> ids </s>."""
    return np.concatenate([[tokenizer.bos_id], ids, [tokenizer.eos_id]]).astype(np.int32)


_NOTHING = np.empty(0, dtype=np.int64)


def _context(
    ids: np.ndarray,
    language: int | np.ndarray,
    predicted: np.ndarray = _NOTHING,
    targets: np.ndarray = _NOTHING,
) -> Document:
    """A document in which every token sees every token."""
    return Document(ids, np.arange(len(ids)) + FIRST_POSITION, language, len(ids), predicted, targets)


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
