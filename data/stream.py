"""This rank's microbatches of every step, made ahead of time by worker processes.

Planner (every rank the same) ──▶ rows of this rank's microbatches ──▶ worker: records ──▶ examples ──▶ arrays
              ▲                                                                                          │
              └──── realised tokens, summed over the ranks ◀──── the run ◀──── PackedBatch + tally ◀─────┘
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.lexicon import Lexicon
from data.packing import Example, pack
from data.planner import LAG, Planner
from data.recipe import UserError
from data.sampling import SamplingConfig, Stream, bilingual_shares, streams_of
from data.store import Corpus, TokenStore, remedy
from data.tally import Tally, Unwritten, tally_mixtures, tally_overlap, tally_pairs
from data.task import Draw, Material, TextSegment
from data.tasks import TasksConfig
from data.teaching import Taught
from data.tokenizer import Tokenizer

_LANGUAGE_SHOWN = 0.5  # probability that a document of the training tells its language


class Microbatch(NamedTuple):
    """The arrays of a PackedBatch and what they hold."""

    arrays: dict[str, Any]
    tally: np.ndarray  # (S, len(Tally)) int64
    unwritten: Unwritten | None = None  # what its tally does not count yet


@dataclass(frozen=True)
class MicrobatchMaker:
    """Turns planned records into a microbatch; opened anew in each worker process."""

    streams: Sequence[Stream]
    material: Material
    store: TokenStore
    settings: TasksConfig
    microbatch_tokens: int
    seed: int
    taught: Taught = Taught()

    @classmethod
    def open(
        cls,
        store_folder: Path,
        lexicon_paths: Sequence[Path],
        tasks: TasksConfig,
        sampling: SamplingConfig,
        *,
        microbatch_tokens: int,
        maximum_tokens: int,
        seed: int,
    ) -> MicrobatchMaker:
        """Open the store, its tokenizer, the lexicon, and what a teacher said."""
        store = TokenStore.open(store_folder)
        lexicon = Lexicon.load(lexicon_paths) if lexicon_paths else None
        tokenizer, bilingual = Tokenizer.open(store.tokenizer_folder), bilingual_shares(store, sampling)
        material = Material(tokenizer, lexicon, store.languages, maximum_tokens, bilingual)
        streams = streams_of(store, tasks, sampling, lexicon)
        taught = Taught.open(tasks, store, known=True)  # by the run that this is a worker of
        return cls(streams, material, store, tasks, microbatch_tokens, seed, taught)

    def __call__(self, records: np.ndarray, shut: tuple[str, ...] = ()) -> Microbatch:
        """Make the microbatch of ``records`` (n, 5) as the planner gives them; n may be 0.

        ``shut`` are the gates that are shut in the step.
        """
        corpora = list(self.store.corpora.values())
        configs = self.settings.enabled()
        tally = np.zeros((len(self.streams), len(Tally)), np.int64)
        examples: list[Example] = []
        pairs = 0
        mixed_pairs: list[tuple[int, Example]] = []  # numbers among the pairs, and what holds them
        unwritten: list[tuple[int, np.ndarray]] = []  # of them, and what they count if they are kept
        for number, record, epoch, room, _ in records.tolist():
            stream = self.streams[number]
            corpus = corpora[stream.corpora[record]]
            numbers = stream.segments_of(record, epoch, self.seed)
            if stream.task.with_row:
                numbers += [segment for segment in corpus.row_of(numbers[0]) if segment not in numbers]
            segments = [self._segment(corpus, segment) for segment in numbers]
            draw = Draw(self.seed, number, stream.name, record, epoch, room, shut)
            example, mixed = stream.task.make(segments, draw, self.material, configs[stream.task.name])
            row = tally[number]
            if example is None:
                row[Tally.REJECTED] += 1
                continue
            examples.append(_with_languages_drawn(example, draw))
            row[Tally.TOKENS] += example.tokens
            row[Tally.PREDICTIONS] += sum(len(document.predicted) for document in example.documents)
            row[Tally.PSEUDO] += sum(len(document.slots) for document in example.documents)
            row[Tally.TRIPLETS] += len(example.triplets)
            if mixed and example.generation:
                row = np.zeros(len(Tally), np.int64)
                unwritten.append((pairs, row))
            tally_pairs(example, row)
            tally_mixtures(mixed, row)
            if mixed:
                mixed_pairs.append((pairs, example))
            pairs += len(example.pairs)
        if not unwritten:
            compared = [example for _, example in mixed_pairs]
            sides = [
                [example.documents[example.pairs[0][side]].token_ids[1:-1] for example in compared]
                for side in (0, 1)
            ]
            groups = np.array([example.group for example in compared], dtype=np.uint64)
            tally_overlap(sides, groups, np.array([example.stream for example in compared], int), tally)
        pad_id = self.material.tokenizer.pad_id
        arrays = pack(examples, self.microbatch_tokens, pad_id, teacher_width=self.taught.width)
        self._check(arrays)
        if not unwritten:
            return Microbatch(arrays, tally)
        numbers, counts = zip(*unwritten, strict=True)
        mixed_numbers = np.array([number for number, _ in mixed_pairs])
        return Microbatch(arrays, tally, Unwritten(np.array(numbers), np.stack(counts), mixed_numbers))

    def _check(self, arrays: dict[str, Any]) -> None:
        """No id outside of the vocabulary leaves for the model, whatever has happened to the files."""
        size = self.material.tokenizer.vocabulary_size
        parts = [arrays, arrays["generation"]] if arrays["generation"] else [arrays]
        for ids in (part[name] for part in parts for name in ("token_ids", "targets")):
            if ids.min(initial=0) < 0 or ids.max(initial=0) >= size:
                raise UserError(
                    f"{self.store.folder}: holds ids outside of its vocabulary of {size}: the token store is damaged;"
                    f" {remedy(self.store.folder)}"
                )

    def _segment(self, corpus: Corpus, segment: int) -> TextSegment:
        """A text of the store, with what the teacher said about it."""
        score, vector = math.nan, None
        if corpus.kind == "scored":
            scores = self.taught.scores.scores(corpus.name) if self.taught.scores else None
            score = float((corpus.segment_scores if scores is None else scores)[segment])
        elif self.taught.vectors is not None:
            vector = self.taught.vectors.vector(corpus.name, segment)
        return TextSegment(
            int(corpus.segment_language[segment]),
            corpus.ids(segment),
            corpus.text(segment),
            int(corpus.segment_groups[segment]),
            score,
            vector,
        )


def _with_languages_drawn(example: Example, draw: Draw) -> Example:
    """Half of the documents, drawn one by one, do not tell their language: the exported model never knows it."""
    shown = draw.random("language").random(len(example.documents)) < _LANGUAGE_SHOWN
    documents = [
        replace(document, language_shown=bool(known))
        for document, known in zip(example.documents, shown, strict=True)
    ]
    return replace(example, documents=documents)


class BatchStream:
    """Yields this rank's microbatches, step by step, up to LAG steps ahead of the run.

    Every rank gets the same number of microbatches at every step, the last ones empty where the step's do not
    divide evenly. Give each step's realised tokens to ``planner.feedback`` before asking for the next step.
    """

    def __init__(
        self,
        planner: Planner,
        open_maker: Callable[[], MicrobatchMaker],
        *,
        microbatch_tokens: int,
        rank: int,
        ranks: int,
        workers: int,
    ) -> None:
        """With ``workers`` 0 the microbatches are made in this process, when they are asked for."""
        self._planner = planner
        self._rows = microbatch_tokens // planner.row_tokens
        total = planner.rows // self._rows
        self.microbatches = -(-total // ranks)
        self._mine = [rank + i * ranks for i in range(self.microbatches)]
        self._pool = (
            ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(open_maker, os.getpid()),
            )
            if workers
            else None
        )
        self._maker = None if workers else open_maker()
        self._ahead: deque[list[Future[Microbatch]]] = deque()

    def next(self) -> list[Microbatch]:
        """The microbatches of the next step."""
        if self._pool is None:
            assert self._maker is not None
            return [self._maker(*planned) for planned in self._planned()]
        while len(self._ahead) <= LAG:
            self._ahead.append([self._pool.submit(_make, *planned) for planned in self._planned()])
        return [future.result() for future in self._ahead.popleft()]

    def _planned(self) -> list[tuple[np.ndarray, tuple[str, ...]]]:
        """Records, and gates that are shut, of each of this rank's microbatches."""
        plan = self._planner.plan()
        return [(plan.rows(m * self._rows, (m + 1) * self._rows), plan.shut) for m in self._mine]

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


_maker: MicrobatchMaker


def _start_worker(open_maker: Callable[[], MicrobatchMaker], parent: int) -> None:
    """Signals meant for the run are the run's; a worker ends when the run has."""
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _maker = open_maker()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _make(records: np.ndarray, shut: tuple[str, ...]) -> Microbatch:
    return _maker(records, shut)
