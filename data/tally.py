"""What the streams of a microbatch really gave, counted; and what is counted only when the model has written.

examples ─▶ tally ───────────────────────────────────────────────────▶ summed over microbatches and ranks
         ─▶ Unwritten (mixed pairs with slots) ─▶ written ─▶ settled ─┘
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from data.mixing import Mixture
from data.overlap import token_overlap
from data.packing import Example


class Tally(IntEnum):
    """Columns of a microbatch's tally (S, len(Tally)) int64: what each stream really gave."""

    TOKENS = 0
    PREDICTIONS = 1
    PAIRS = 2
    REJECTED = 3  # records that gave no example
    PSEUDO = 4  # tokens that the model has to generate
    MIXED = 5  # mixed texts: one in a pair, or two
    REPLACED = 6  # their words that were replaced; characters or tokens where they are no words
    TRANSLATABLE = 7
    WORDS = 8
    LANGUAGES = 9  # sum over mixed texts
    CUT = 10  # mixed texts that lost their end for want of room
    BY_DICTIONARY = 11  # mixed texts of each generator
    BY_PHRASE = 12
    BY_SENTENCE = 13
    BY_PSEUDO_TOKENS = 14
    OVERLAP = 15  # sum over mixed pairs of the share of tokens that both sides have, in millionths
    BASELINE_ROWS = 16  # sides of mixed pairs that have negatives in their microbatch
    BASELINE_CORRECT = 17  # those that overlap alone finds (data/overlap.py)
    TRIPLETS = 18
    TAUGHT_PAIRS = 19  # of the pairs, those of whose texts the teacher's vectors are known
    ONE_LANGUAGE = 20  # mixed pairs given up, since what the model wrote for them is of no second language


class Written(NamedTuple):
    """What a microbatch holds after its slots are filled: columns of its PackedBatch, and what was found in them."""

    token_ids: np.ndarray  # (T,)
    document_starts: np.ndarray  # (N + 1,)
    slots: np.ndarray  # (S,)
    pairs: np.ndarray  # (P, 2), those that are given up included
    pair_groups: np.ndarray  # (P,)
    pair_stream: np.ndarray  # (P,)
    second: np.ndarray  # (S,) bool, whether a pseudo token is of the language that was asked for
    given_up: np.ndarray  # (P,) bool


class Unwritten(NamedTuple):
    """Mixed pairs of a microbatch that hold two languages only if the model writes one of them."""

    pairs: np.ndarray  # (U,) their numbers among the pairs of the microbatch
    tallies: np.ndarray  # (U, len(Tally)) what each adds to its stream if it is kept
    mixed: np.ndarray  # (m,) all mixed pairs of the microbatch, whose overlap waits for theirs

    def settled(self, streams: int, written: Written) -> np.ndarray:
        """What is to be added to the microbatch's tally (streams, len(Tally)), now that it is known."""
        tally = np.zeros((streams, len(Tally)), np.int64)
        document = np.searchsorted(written.document_starts, written.slots, side="right") - 1
        words = np.bincount(document[written.second], minlength=len(written.document_starts))
        for pair, counts in zip(self.pairs, self.tallies, strict=True):
            row = tally[written.pair_stream[pair]]
            if written.given_up[pair]:
                row[Tally.ONE_LANGUAGE] += 1
                continue
            row += counts
            row[Tally.REPLACED] += words[written.pairs[pair]].sum()
        kept = self.mixed[~written.given_up[self.mixed]]
        starts = written.document_starts
        sides = [
            [written.token_ids[starts[d] + 1 : starts[d + 1] - 1] for d in written.pairs[kept, side]]
            for side in (0, 1)
        ]
        tally_overlap(sides, written.pair_groups[kept], written.pair_stream[kept], tally)
        return tally


def tally_pairs(example: Example, row: np.ndarray) -> None:
    """Count the pairs of an example in its stream's ``row`` (len(Tally),)."""
    row[Tally.PAIRS] += len(example.pairs)
    row[Tally.TAUGHT_PAIRS] += sum(
        all(example.documents[side].teacher is not None for side in pair) for pair in example.pairs
    )


def tally_mixtures(mixtures: Sequence[Mixture], row: np.ndarray) -> None:
    """Count how the sides of an example were mixed."""
    for side in mixtures:
        row[Tally.MIXED] += 1
        row[Tally.REPLACED] += side.replaced
        row[Tally.TRANSLATABLE] += side.translatable
        row[Tally.WORDS] += side.words
        row[Tally.LANGUAGES] += side.languages
        row[Tally.CUT] += side.cut
        row[Tally[f"BY_{side.generator.upper()}"]] += 1


def tally_overlap(
    sides: Sequence[Sequence[np.ndarray]], groups: np.ndarray, streams: np.ndarray, tally: np.ndarray
) -> None:
    """How much of their task mixed pairs of a microbatch give away by sharing tokens; see data/overlap.py."""
    one, other = sides
    for stream, shared, rows, correct in zip(streams, *token_overlap(one, other, groups), strict=True):
        row = tally[stream]
        row[Tally.OVERLAP] += round(1e6 * shared)
        row[Tally.BASELINE_ROWS] += rows
        row[Tally.BASELINE_CORRECT] += correct
