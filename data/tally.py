"""What the streams of a microbatch really gave, counted; and what is counted only when the model has written.

examples ─▶ tally ───────────────────────────────────────────────────▶ summed over microbatches and ranks
         ─▶ Unwritten (mixed pairs with slots) ─▶ written ─▶ settled ─┘
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from data.overlap import token_overlap
from data.ragged import row_of_each, sums
from data.task import Part


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


_MIXED = slice(Tally.MIXED, Tally.CUT + 1)
_BY = {name: Tally[f"BY_{name.upper()}"] for name in ("dictionary", "phrase", "sentence", "pseudo_tokens")}


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
        sides = sides_of(written.token_ids, written.document_starts, written.pairs[kept])
        tally_overlap(sides, written.pair_groups[kept], written.pair_stream[kept], tally)
        return tally


def tally_examples(part: Part, tally: np.ndarray) -> None:
    """Count the tokens, predictions and triplets of examples."""
    laid = part.laid
    for column, counts in (
        (Tally.TOKENS, laid.tokens),
        (Tally.PREDICTIONS, sums(laid.predictions, laid.documents)),
    ):
        np.add.at(tally[:, column], laid.streams, counts)
    np.add.at(tally[:, Tally.PSEUDO], laid.streams[row_of_each(laid.documents)[laid.slot_documents]], 1)
    np.add.at(tally[:, Tally.TRIPLETS], laid.streams[laid.triplet_examples], 1)


def pair_counts(part: Part) -> np.ndarray:
    """(n, len(Tally)) the pairs of each example, and how its texts were mixed."""
    laid = part.laid
    counts = np.zeros((len(laid), len(Tally)), np.int64)
    counts[:, Tally.PAIRS] = np.bincount(laid.pair_examples, minlength=len(laid))
    if laid.teacher is not None:
        taught = np.any(laid.teacher, axis=1)[laid.pairs].all(1)
        counts[:, Tally.TAUGHT_PAIRS] = np.bincount(laid.pair_examples[taught], minlength=len(laid))
    sides = [(row, *side) for row, mixtures in enumerate(part.mixed) for side in mixtures]
    if sides:
        which, generators, *found = zip(*sides, strict=True)
        each = np.stack([np.ones(len(which)), *found], axis=1).astype(np.int64)
        np.add.at(counts[:, _MIXED], list(which), each)
        np.add.at(counts, (list(which), [_BY[name] for name in generators]), 1)
    return counts


def sides_of(token_ids: np.ndarray, starts: np.ndarray, pairs: np.ndarray) -> list[list[np.ndarray]]:
    """The ids, without <s> and </s>, of the documents on the one side and on the other of ``pairs`` (n, 2)."""
    firsts, lasts = (starts[pairs] + 1).T.tolist(), (starts[pairs + 1] - 1).T.tolist()
    return [
        [token_ids[first:last] for first, last in zip(*side, strict=True)]
        for side in zip(firsts, lasts, strict=True)
    ]


def tally_overlap(
    sides: Sequence[Sequence[np.ndarray]], groups: np.ndarray, streams: np.ndarray, tally: np.ndarray
) -> None:
    """How much of their task mixed pairs of a microbatch give away by sharing tokens; see data/overlap.py."""
    one, other = sides
    shared, rows, correct = token_overlap(one, other, groups)
    for column, counts in (
        (Tally.OVERLAP, np.round(1e6 * shared).astype(np.int64)),
        (Tally.BASELINE_ROWS, rows),
        (Tally.BASELINE_CORRECT, correct),
    ):
        np.add.at(tally[:, column], streams, counts)
