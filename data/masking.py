"""Which tokens of a text are predicted, and what is shown in their place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FIRST_ORDINARY_ID = 4  # <s>, <pad>, </s> and <unk> stand before it; <mask> is the last id


def choose(count: int, rate: float, random: np.random.Generator) -> np.ndarray:
    """Positions to predict among ``count`` tokens, ascending (k,) with k = rate * count rounded, at least 1.

    A fixed number for each text, rather than a coin for each token, keeps the work of a step even.
    """
    if count == 0:
        return np.empty(0, dtype=np.int64)
    chosen = max(1, int(rate * count + random.random()))  # rounds at random, so that the mean rate is exact
    return np.sort(random.permutation(count)[: min(chosen, count)])


class Masked(NamedTuple):
    """A text with some of its tokens hidden."""

    shown: np.ndarray  # (n,) int32, what the encoder sees
    predicted: np.ndarray  # (k,) positions in the text
    targets: np.ndarray  # (k,) int32, what stood there


def corrupt(ids: np.ndarray, rate: float, mask_id: int, random: np.random.Generator) -> Masked:
    """BERT's masking of ``ids`` (n,): of the chosen tokens 80 % become <mask>, 10 % a random word, 10 % stay.

    Source: Devlin et al., 2019, section 3.1. Random words are drawn from the ordinary ids only.
    """
    predicted = choose(len(ids), rate, random)
    shown = ids.copy()
    fate = random.random(len(predicted))
    shown[predicted[fate < 0.8]] = mask_id
    randomised = predicted[fate >= 0.9]
    shown[randomised] = random.integers(FIRST_ORDINARY_ID, mask_id, size=len(randomised))
    return Masked(shown, predicted, ids[predicted])
