"""Mixed-language alignment: a text and its mixed-language form are compared (US20220019743A1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from data.lexicon import PIVOT, written_without_spaces
from data.mixing import mix
from data.packing import Example
from data.task import (
    SPECIALS,
    Draw,
    Made,
    Material,
    TaskConfig,
    TextSegment,
    context_document,
    room_of_text,
    wrapped,
)

# Room for a mixed text, times the tokens of its original: translations are cut into more pieces than the words
# that they replace. Measured on the demo, so that about 3 texts in 100 are cut in every language: most where a
# word is one character or two, and in the language that has the longest dictionaries.
_MIXED_GROWTH = 1.25
_MIXED_GROWTH_OF_PIVOT = 1.4
_MIXED_GROWTH_WITHOUT_SPACES = 2.0
_MIXED_FURTHER = 5  # tokens; one word more or less tells in a short text


class MixedAlignmentConfig(TaskConfig):
    """Mixed-language alignment: the part of the translatable phrases that are translated."""

    replacement_rate: float = Field(0.7, gt=0, le=1)


def room_of_text_and_mixed(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str], config: TaskConfig
) -> np.ndarray:
    """Tokens of a text's document and of its mixed form's."""
    (language,) = languages
    growth = _MIXED_GROWTH_OF_PIVOT if language == PIVOT else _MIXED_GROWTH
    if written_without_spaces(language):
        growth = _MIXED_GROWTH_WITHOUT_SPACES
    mixed = (lengths[0] * growth).astype(np.int64) + _MIXED_FURTHER + SPECIALS
    return room_of_text(lengths, maximum, languages, config) + np.minimum(mixed, maximum)


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
    # To the teacher both mean the same: it has read the original.
    documents = [
        context_document(wrapped(side, tokenizer), segment.language, teacher=segment.teacher)
        for side in (ids, kept)
    ]
    if draw.random("side").random() < 0.5:
        documents.reverse()
    example = Example(draw.stream, documents, pairs=[(0, 1)], group=segment.group)
    return Made(example, mixed, len(kept) < len(whole))
