"""The table of tasks: which records a task reads, how much room they need, and what documents they become.

A new task is a new row of TASKS, a settings class and a loss in data/settings/, and the function that makes its
documents. What a row is stands in data/task.py; a task that is more than a function has a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data.adaptive_margin import make_adaptive_margin
from data.back_translation import make_btmlm, room_of_text_and_pseudo
from data.keys import sequence
from data.laid import FIRST_POSITION, Laid, context_documents
from data.masking import choose, corrupt
from data.mixed_alignment import room_of_text_and_mixed
from data.mixed_forms import make_mixed_alignment
from data.ragged import counted, places, row_of_each, starts_of
from data.settings.task import CrossAttentionMaskedConfig, MaskedConfig, TaskConfig
from data.task import (
    SPECIALS,
    Made,
    Material,
    Part,
    Records,
    Task,
    ends_of,
    room_of_text,
    room_of_texts,
)
from data.triplet_alignment import make_triplet_alignment


def _room_of_pair(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str], config: TaskConfig
) -> np.ndarray:
    return np.minimum(lengths[0] + lengths[1] + 2 * SPECIALS, maximum)


def make_mmlm(records: Records, material: Material, config: TaskConfig) -> Made:
    """Multilingual masked language modelling: [x | -], masked tokens of x are predicted (BERT, XLM-R)."""
    assert isinstance(config, MaskedConfig)
    texts, draws = records.texts.cut(material.maximum_tokens - SPECIALS), records.draws
    mask_id = material.tokenizer.mask_id
    masked = corrupt(texts.ids, texts.lengths, config.mask_rate, mask_id, draws.of_use("mask"))
    documents = context_documents(masked.shown, texts.lengths, texts.languages, ends_of(material.tokenizer))
    documents |= {"predictions": masked.counts, "predicted": masked.predicted + 1, "targets": masked.targets}
    return [_all(records, np.ones(len(texts), np.int64), **documents)]


def make_tlm(records: Records, material: Material, config: TaskConfig) -> Made:
    """Translation language modelling: [x y | -], masked tokens of both are predicted (XLM, Conneau 2019)."""
    assert isinstance(config, MaskedConfig)
    sides = _Sides.of(records, material)
    mask_id = material.tokenizer.mask_id
    both = sides.x + sides.y
    masked = corrupt(sides.ids, both, config.mask_rate, mask_id, records.draws.of_use("mask"))
    whole = both + 2 * SPECIALS
    in_y = masked.predicted >= np.repeat(sides.x, masked.counts)
    return [
        _all(
            records,
            np.ones(len(whole), np.int64),
            token_ids=sides.laid(masked.shown, material),
            position_ids=counted(whole) + FIRST_POSITION,
            languages=sides.languages(),
            lengths=whole,
            context_lengths=whole,
            shown=np.zeros(len(whole), bool),
            predictions=masked.counts,
            predicted=masked.predicted + 1 + SPECIALS * in_y,
            targets=masked.targets,
        )
    ]


def make_camlm(records: Records, material: Material, config: TaskConfig) -> Made:
    """Cross-attention masked language modelling (ERNIE-M, Ouyang et al., 2021).

    A masked token of one side is predicted from the unmasked tokens of the OTHER side, so the pair becomes two
    documents, [y unmasked | x masked] and [x unmasked | y masked]: the own side's context is in the other
    document and can not leak at any depth. Tokens keep their positions of the pair layout.
    """
    assert isinstance(config, CrossAttentionMaskedConfig)
    sides = _Sides.of(records, material)
    of_sides = np.stack([sides.x, sides.y], 1).ravel()  # x and y of the first pair, x and y of the second ...
    keys = np.stack([records.draws.of_use("mask of x"), records.draws.of_use("mask of y")], 1).ravel()
    chosen, _ = choose(of_sides, config.mask_rate, keys)
    # The tokens of a pair, each with its side, and whether it is masked: <s> and </s> never are.
    whole = of_sides + SPECIALS
    tokens = sides.laid(sides.ids, material)
    masked = np.zeros(len(tokens), bool)
    masked[places(starts_of(whole) + 1, of_sides)] = chosen
    number = row_of_each(whole)  # 2 * pair, and 1 more in y
    # Every token goes into one of the two documents: an unmasked one of y and a masked one of x into the first.
    document = number - number % 2 + (number % 2 == masked)
    order = np.argsort(2 * document + masked, kind="stable")
    lengths = np.bincount(document, minlength=len(whole))
    readers = np.bincount(document[masked], minlength=len(whole))
    shown = np.where(masked, material.tokenizer.mask_id, tokens)[order]
    positions = counted(whole.reshape(-1, 2).sum(1)) + FIRST_POSITION
    return [
        _all(
            records,
            np.full(len(sides.x), 2),
            token_ids=shown,
            position_ids=positions[order],
            languages=sides.languages()[order],
            lengths=lengths,
            context_lengths=lengths - readers,
            shown=np.zeros(len(whole), bool),
            predictions=readers,
            predicted=places(lengths - readers, readers),
            targets=tokens[order][masked[order]],
        )
    ]


def make_translation_alignment(records: Records, material: Material, config: TaskConfig) -> Made:
    """Contrastive alignment of a sentence with its translations (InfoXLM, LaBSE), each with each."""
    counts = records.counts
    # The texts of a record in an order that is drawn.
    draws = sequence(records.draws.of_use("order"), counts)
    of = row_of_each(counts)
    order = np.argsort(of.astype(np.uint64) << np.uint64(40) | draws >> np.uint64(24), kind="stable")
    texts = records.texts.taken(order).cut(material.maximum_tokens - SPECIALS)
    firsts = starts_of(counts)
    pairs, examples = [], []
    for count in np.unique(counts):
        here = np.flatnonzero(counts == count)
        among = np.stack(np.triu_indices(count, 1), 1)  # (k * (k - 1) / 2, 2)
        pairs.append((firsts[here, None, None] + among).reshape(-1, 2))
        examples.append(np.repeat(here, len(among)))
    documents = context_documents(texts.ids, texts.lengths, texts.languages, ends_of(material.tokenizer))
    return [
        _all(
            records,
            counts,
            **documents,
            pairs=np.concatenate(pairs),
            pair_examples=np.concatenate(examples),
            groups=records.texts.groups[firsts],
            teacher=texts.teacher if texts.teacher.shape[1] else None,
        )
    ]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("mmlm", "monolingual", "sentences", room_of_text, make_mmlm),
        Task("tlm", "bilingual", "pairs", _room_of_pair, make_tlm),
        Task("camlm", "bilingual", "pairs", _room_of_pair, make_camlm),
        Task(
            "translation_alignment",
            "bilingual",
            "pairs",
            room_of_texts,
            make_translation_alignment,
        ),
        Task(
            "mixed_alignment",
            "monolingual",
            "texts",
            room_of_text_and_mixed,
            make_mixed_alignment,
        ),
        Task(
            "adaptive_margin",
            "bilingual",
            "triplets",
            room_of_texts,
            make_adaptive_margin,
        ),
        Task(
            "triplet_alignment",
            "bilingual",
            "triplets",
            room_of_texts,
            make_triplet_alignment,
        ),
        Task("btmlm", "monolingual", "sentences", room_of_text_and_pseudo, make_btmlm),
    )
}


def _all(records: Records, documents: np.ndarray, **columns: Any) -> Part:
    """An example of every record, of so many ``documents`` (n,)."""
    count = len(records.draws.streams)
    return Part(Laid(streams=records.draws.streams, documents=documents, **columns), np.arange(count))


class _Sides(NamedTuple):
    """Pairs of texts x and y, either order of a record's two drawn with equal probability (InfoXLM)."""

    ids: np.ndarray  # (t,) of x and y of the first pair, x and y of the second ...
    x: np.ndarray  # (n,) their lengths
    y: np.ndarray  # (n,)
    both: np.ndarray  # (2n,) languages

    @classmethod
    def of(cls, records: Records, material: Material) -> _Sides:
        """The sides of records of two texts, cut so that a pair has at most the longest document's tokens."""
        swapped = records.draws.chances("order") >= 0.5
        firsts = 2 * np.arange(len(swapped))
        order = np.stack([firsts + swapped, firsts + 1 - swapped], 1).ravel()
        texts = records.texts.taken(order)
        x, y = fitted(texts.lengths[::2], texts.lengths[1::2], material.maximum_tokens)
        texts = texts.cut(np.stack([x, y], 1).ravel())
        return cls(texts.ids, x, y, texts.languages)

    def laid(self, ids: np.ndarray, material: Material) -> np.ndarray:
        """<s> x </s> </s> y </s> of every pair, end to end; ``ids`` (t,) are those of the texts."""
        lengths = np.stack([self.x, self.y], 1).ravel()
        bos, eos = ends_of(material.tokenizer)
        tokens = context_documents(ids, lengths, self.both, (eos, eos))["token_ids"]
        tokens[starts_of(lengths + SPECIALS)[::2]] = bos
        return tokens

    def languages(self) -> np.ndarray:
        """Of every token of them."""
        return np.repeat(self.both, np.stack([self.x, self.y], 1).ravel() + SPECIALS)


def fitted(left: np.ndarray, right: np.ndarray, maximum: int) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of pairs of ``left`` and ``right`` (n,) tokens that fit into ``maximum`` with their special ones.

    The longer side loses first.
    """
    room = maximum - 2 * SPECIALS
    kept = np.maximum(room - np.minimum(left, right), room - room // 2)  # of the longer side
    of_left = np.where(left >= right, kept, room - kept)
    fits = left + right <= room
    return np.where(fits, left, np.minimum(of_left, left)), np.where(
        fits, right, np.minimum(room - of_left, right)
    )
