"""Mixed-language alignment, what the planner asks: which records are mixed on both sides, and the room of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.keys import chances, hashed, key
from data.languages import PIVOT, written_without_spaces
from data.settings.task import TaskConfig
from data.task import SPECIALS, room_of_text

# Room for a mixed text, times the tokens of its original: translations are cut into more pieces than the words
# that they replace. Measured on the demo, so that about 3 texts in 100 are cut in every language: most where a
# word is one character or two, and in the language that has the longest dictionaries.
_MIXED_GROWTH = 1.25
_MIXED_GROWTH_OF_PIVOT = 1.4
_MIXED_GROWTH_WITHOUT_SPACES = 2.0
_MIXED_FURTHER = 5  # tokens; one word more or less tells in a short text


def both_sides_mixed(share: float, stream: str, records: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """Whether both sides of each of ``records`` (n,) are mixed in an epoch: the planner sets room aside for it."""
    if share == 0:
        return np.zeros(len(records), bool)
    return chances(hashed(key(seed, stream, epoch, "both mixed"), records)) < share


def room_of_text_and_mixed(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str], config: TaskConfig
) -> np.ndarray:
    """Tokens of a text's document and of its mixed form's.

    Of two mixed forms where a second length is given that is not below zero.
    """
    (language,) = languages
    growth = _MIXED_GROWTH_OF_PIVOT if language == PIVOT else _MIXED_GROWTH
    if written_without_spaces(language):
        growth = _MIXED_GROWTH_WITHOUT_SPACES
    mixed = (lengths[0] * growth).astype(np.int64) + _MIXED_FURTHER + SPECIALS
    mixed = np.minimum(mixed, maximum)
    other = room_of_text(lengths, maximum, languages, config)
    if len(lengths) > 1:
        other = np.where(lengths[1] >= 0, mixed, other)
    return other + mixed
