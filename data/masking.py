"""Which tokens of texts are predicted, and what is shown in their place: for many texts at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.keys import chances, hashed, key, sequence
from data.ragged import counted, row_of_each, starts_of, sums

FIRST_ORDINARY_ID = 4  # <s>, <pad>, </s> and <unk> stand before it; <mask> is the last id
_FATE, _WORD = key("fate of a chosen token"), key("random word")


class Masked(NamedTuple):
    """n texts with some of their tokens hidden."""

    shown: np.ndarray  # (t,) int32, what the encoder sees, end to end
    counts: np.ndarray  # (n,) tokens to predict in each text
    predicted: np.ndarray  # (m,) their positions in their texts, ascending in each
    targets: np.ndarray  # (m,) int32, what stood there


def choose(lengths: np.ndarray, rate: float, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens to predict of texts of ``lengths`` (n,): (t,) bool, and the draw (t,) uint64 that each token had.

    Of each text rate * length, rounded, at least 1: a fixed number, rather than a coin for each token, keeps the work
    of a step even. They are those that drew the smallest numbers; ``keys`` (n,) are of this use of the texts alone.
    """
    draws = sequence(keys, lengths + 1)
    ends = np.cumsum(lengths + 1)
    rounding, draws = draws[ends - 1], np.delete(draws, ends - 1)
    # rounded at random, so that the mean rate is exact
    wanted = np.maximum(1, (rate * lengths + chances(rounding)).astype(np.int64))
    texts = row_of_each(lengths)
    # Sorted by text, then by draw: 40 bits of it tell the tokens of a text apart.
    order = np.argsort(texts.astype(np.uint64) << np.uint64(40) | draws >> np.uint64(24), kind="stable")
    chosen = np.zeros(len(draws), bool)
    chosen[order] = counted(lengths) < wanted[texts]
    return chosen, draws


def corrupt(ids: np.ndarray, lengths: np.ndarray, rate: float, mask_id: int, keys: np.ndarray) -> Masked:
    """BERT's masking of texts ``ids`` (t,): of the chosen tokens 80 % become <mask>, 10 % a random word, 10 % stay.

    Source: Devlin et al., 2019, section 3.1. Random words are drawn from the ordinary ids only.
    """
    chosen, draws = choose(lengths, rate, keys)
    places = np.flatnonzero(chosen)
    fate = chances(hashed(_FATE, draws[places]))
    shown = ids.copy()
    shown[places[fate < 0.8]] = mask_id
    randomised = places[fate >= 0.9]
    words = hashed(_WORD, draws[randomised]) % np.uint64(mask_id - FIRST_ORDINARY_ID)
    shown[randomised] = words.astype(np.int64) + FIRST_ORDINARY_ID
    counts = sums(chosen, lengths)
    return Masked(shown, counts, places - np.repeat(starts_of(lengths), counts), ids[places])
