"""Examples as columns: the documents of many examples end to end, before it is known where in a batch they stand.

one by one:  Example = documents, which are compared with which, what is generated for them
at once:     Laid    = the columns of n examples with N documents, t tokens and M predicted positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.ragged import counted, places, starts_of, sums

FIRST_POSITION = 2  # XLM-R counts positions from padding_idx + 1


def _nothing() -> np.ndarray:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Document:
    """A tokenised text in a task's form: ``context_length`` tokens of context, then its readers."""

    token_ids: np.ndarray  # (n,) int32
    position_ids: np.ndarray  # (n,)
    language: int | np.ndarray  # number of the language, of the whole or of each token (n,)
    context_length: int
    predicted: np.ndarray = field(default_factory=_nothing)  # (m,) positions in the document
    targets: np.ndarray = field(default_factory=_nothing)  # (m,)
    teacher: np.ndarray | None = None  # (Et,) the teacher's unit vector of the text, where there is one
    slots: np.ndarray = field(default_factory=_nothing)  # (k,) positions that pseudo tokens are written to
    draws: np.ndarray = field(default_factory=_nothing)  # (m,) in [0, 1), of a document that generates
    language_shown: bool = False  # whether a model that has vectors of languages adds them here


@dataclass(frozen=True, slots=True)
class Triplet:
    """An anchor, its positive and its negatives, by their numbers in an example, with the teacher's gaps."""

    anchor: int
    positive: int
    negatives: Sequence[int]
    teacher_gaps: Sequence[float]  # score of the positive minus that of each negative


@dataclass(frozen=True, slots=True)
class Example:
    """What one record becomes for one task: documents, which are compared with which, what is generated for them.

    The documents of ``generation`` are [text | placeholders], predicted at their placeholders, and are run first,
    without gradient. The ids that come out fill the slots of ``documents``: all of them in order, over documents.
    """

    stream: int
    documents: Sequence[Document]
    pairs: Sequence[tuple[int, int]] = ()  # numbers of documents in this example
    group: int = 0
    triplets: Sequence[Triplet] = ()
    generation: Sequence[Document] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all its documents, without those that only generate."""
        return sum(len(document.token_ids) for document in self.documents)


@dataclass(frozen=True, slots=True)
class Triplets:
    """Q triplets: numbers of documents, and the teacher's gaps."""

    anchors: np.ndarray  # (Q,)
    positives: np.ndarray  # (Q,)
    negatives: np.ndarray  # (Q, K), -1 where a triplet has fewer
    gaps: np.ndarray  # (Q, K) float32


def no_triplets() -> Triplets:
    """Of nothing."""
    return Triplets(_nothing(), _nothing(), _nothing().reshape(0, 0), np.empty((0, 0), np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """n examples of N documents. Numbers of documents count the documents of all of them."""

    streams: np.ndarray  # (n,)
    documents: np.ndarray  # (n,) how many documents each has
    token_ids: np.ndarray  # (t,)
    position_ids: np.ndarray  # (t,)
    languages: np.ndarray  # (t,)
    lengths: np.ndarray  # (N,) tokens of each document
    context_lengths: np.ndarray  # (N,)
    shown: np.ndarray  # (N,) bool, whether a document tells its language
    predictions: np.ndarray  # (N,) how many positions of each document are predicted
    predicted: np.ndarray = field(default_factory=_nothing)  # (M,) positions in their documents
    targets: np.ndarray = field(default_factory=_nothing)  # (M,)
    pairs: np.ndarray = field(default_factory=lambda: _nothing().reshape(0, 2))  # (P, 2) documents
    pair_examples: np.ndarray = field(default_factory=_nothing)  # (P,) the example of each pair
    groups: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # (n,), if there are pairs
    negatives: np.ndarray = field(default_factory=_nothing)  # (H,) documents that pairs are compared with
    negative_groups: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # (H,)
    triplets: Triplets = field(default_factory=no_triplets)
    triplet_examples: np.ndarray = field(default_factory=_nothing)  # (Q,)
    teacher: np.ndarray | None = None  # (N, Et) float32, zeros where there is none
    slots: np.ndarray = field(default_factory=_nothing)  # (S,) positions in their documents
    slot_documents: np.ndarray = field(default_factory=_nothing)  # (S,)
    draws: np.ndarray = field(default_factory=lambda: np.empty(0))  # (M,), of documents that generate
    generation: Laid | None = None  # as many examples, of which some may have no document

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.streams)

    @property
    def compared(self) -> bool:
        """Whether its documents are compared with each other."""
        return len(self.pairs) + len(self.triplets.anchors) > 0

    @property
    def tokens(self) -> np.ndarray:
        """(n,) of each example, without those that only generate."""
        return sums(self.lengths, self.documents)

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Laid:
        """Examples that are at hand one by one."""
        documents = [document for example in examples for document in example.documents]
        counts = np.array([len(example.documents) for example in examples], np.int64)
        firsts = starts_of(counts)
        generation = None
        if any(example.generation for example in examples):
            generation = cls.of([Example(e.stream, e.generation) for e in examples])
        width = max((len(d.teacher) for d in documents if d.teacher is not None), default=0)
        teacher = np.zeros((len(documents), width), np.float32) if width else None
        for row, document in enumerate(documents):
            if teacher is not None and document.teacher is not None:
                teacher[row] = document.teacher
        triplets = [(n, triplet) for n, example in enumerate(examples) for triplet in example.triplets]
        return cls(
            streams=np.array([example.stream for example in examples], np.int64),
            documents=counts,
            token_ids=_joined([d.token_ids for d in documents]),
            position_ids=_joined([d.position_ids for d in documents]),
            languages=_joined([np.broadcast_to(d.language, len(d.token_ids)) for d in documents]),
            lengths=np.array([len(d.token_ids) for d in documents], np.int64),
            context_lengths=np.array([d.context_length for d in documents], np.int64),
            shown=np.array([d.language_shown for d in documents], bool),
            predictions=np.array([len(d.predicted) for d in documents], np.int64),
            predicted=_joined([d.predicted for d in documents]),
            targets=_joined([d.targets for d in documents]),
            pairs=np.array(
                [(f + a, f + b) for f, e in zip(firsts, examples, strict=True) for a, b in e.pairs], np.int64
            ).reshape(-1, 2),
            pair_examples=np.array([n for n, e in enumerate(examples) for _ in e.pairs], np.int64),
            groups=np.array([example.group for example in examples], np.uint64),
            triplets=_triplets_of([(int(firsts[n]), triplet) for n, triplet in triplets]),
            triplet_examples=np.array([n for n, _ in triplets], np.int64),
            teacher=teacher,
            slots=_joined([d.slots for d in documents]),
            slot_documents=np.repeat(np.arange(len(documents)), [len(d.slots) for d in documents]),
            draws=np.concatenate([np.empty(0), *(d.draws for d in documents)]),
            generation=generation,
        )


def context_documents(
    ids: np.ndarray,
    lengths: np.ndarray,
    languages: np.ndarray,
    ends: tuple[int, int],
) -> dict[str, Any]:
    """The columns of documents <s> text </s> in which every token sees every token.

    Args:
        ids: (t,) of the texts, end to end.
        lengths: (n,) of the texts.
        languages: (n,) of the texts.
        ends: the ids of <s> and </s>.

    """
    whole = lengths + 2
    firsts = starts_of(whole)
    token_ids = np.empty(len(ids) + 2 * len(lengths), np.int64)
    token_ids[firsts], token_ids[firsts + whole - 1] = ends
    token_ids[places(firsts + 1, lengths)] = ids
    return {
        "token_ids": token_ids,
        "position_ids": counted(whole) + FIRST_POSITION,
        "languages": np.repeat(languages, whole),
        "lengths": whole,
        "context_lengths": whole,
        "shown": np.zeros(len(whole), bool),
        "predictions": np.zeros(len(whole), np.int64),
    }


def _triplets_of(triplets: Sequence[tuple[int, Triplet]]) -> Triplets:
    """Of (number of the example's first document, triplet)."""
    most = max((len(triplet.negatives) for _, triplet in triplets), default=0)
    negatives = np.full((len(triplets), most), -1, dtype=np.int64)
    gaps = np.zeros((len(triplets), most), dtype=np.float32)
    for row, (first, triplet) in enumerate(triplets):
        negatives[row, : len(triplet.negatives)] = np.asarray(triplet.negatives) + first
        gaps[row, : len(triplet.negatives)] = triplet.teacher_gaps
    return Triplets(
        np.array([first + t.anchor for first, t in triplets], dtype=np.int64),
        np.array([first + t.positive for first, t in triplets], dtype=np.int64),
        negatives,
        gaps,
    )


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
