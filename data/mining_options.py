"""What may be asked of the mining of triplets."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """Which triplets are wanted; ranges and margins as in sentence-transformers' mine_hard_negatives."""

    negatives: int = 4
    pairs: str = "all"  # every pair of languages, or only those with this language
    triplets: int | None = None  # at most so many, spread evenly over the directions
    range_min: int = 0  # so many nearest candidates are left out
    range_max: int = 100  # and only these are looked at
    max_score: float | None = None  # a negative's score is at most this,
    absolute_margin: float | None = None  # at least so far below that of the positive,
    relative_margin: float | None = None  # and at most this part below: 0.05 is 95 % of the positive's score
    sampling: str = "top"  # the nearest of those that are left, or drawn from them
    seed: int = 1
