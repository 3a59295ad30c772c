"""A microbatch: planned records become texts, texts examples, examples the arrays of a PackedBatch.

rows of a plan ──▶ by task: texts of all its records ──▶ examples ──▶ packed, and counted
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.keys import chances, sequence
from data.lexicon import Lexicon
from data.packing import pack
from data.reading import read_texts
from data.recipe import UserError
from data.sampling import SamplingConfig, Stream, bilingual_shares, streams_of
from data.settings.task import TaskConfig
from data.settings.tasks import TasksConfig
from data.store import TokenStore, remedy
from data.tally import Tally, Unwritten, pair_counts, sides_of, tally_examples, tally_overlap
from data.task import Draws, Made, Material, Records
from data.tasks import TASKS
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
        tally = np.zeros((len(self.streams), len(Tally)), np.int64)
        parts = [part for made in self._made(records, shut) for part in made if len(part.records)]
        np.add.at(tally[:, Tally.REJECTED], records[:, 0], 1)
        for part in parts:
            np.add.at(tally[:, Tally.REJECTED], part.laid.streams, -1)
            tally_examples(part, tally)
        parts.sort(key=lambda part: not part.laid.compared)  # as they are packed
        unwritten: list[tuple[np.ndarray, np.ndarray]] = []  # numbers of pairs, what they count if kept
        mixed: list[np.ndarray] = []  # numbers of pairs
        pairs = 0
        for part in parts:
            counts = pair_counts(part)
            if part.mixed:
                mixed.append(pairs + np.arange(len(part.laid.pairs)))
            if part.mixed and part.laid.generation is not None:
                unwritten.append((mixed[-1], counts))
            else:
                np.add.at(tally, part.laid.streams, counts)
            pairs += len(part.laid.pairs)
        pad_id, laid = self.material.tokenizer.pad_id, [part.laid for part in parts]
        arrays = pack(laid, self.microbatch_tokens, pad_id, teacher_width=self.taught.width)
        self._check(arrays)
        if unwritten:
            numbers, rows = zip(*unwritten, strict=True)
            waiting = Unwritten(np.concatenate(numbers), np.concatenate(rows), np.concatenate(mixed))
            return Microbatch(arrays, tally, waiting)
        if mixed:
            which = np.concatenate(mixed)
            sides = sides_of(arrays["token_ids"], arrays["document_starts"], arrays["pairs"][which])
            tally_overlap(sides, arrays["pair_groups"][which], arrays["pair_stream"][which], tally)
        return Microbatch(arrays, tally)

    def _made(self, records: np.ndarray, shut: tuple[str, ...]) -> Iterator[Made]:
        """What each task makes of its records, with the languages drawn that documents tell."""
        names = {number: stream.name for number, stream in enumerate(self.streams)}
        of_streams = np.array([stream.task.name for stream in self.streams])
        configs = self.settings.enabled()
        for name in configs:
            table = records[(of_streams == name)[records[:, 0]]]
            if not len(table):
                continue
            draws = Draws.planned(self.seed, names, table, shut)
            settings = configs[name]
            made = TASKS[name].make(self._read(draws, settings), self.material, settings)
            for part in made:
                of_documents = sequence(draws.of_use("language")[part.records], part.laid.documents)
                part.laid.shown[:] = chances(of_documents) < _LANGUAGE_SHOWN
            yield made

    def _read(self, draws: Draws, settings: TaskConfig) -> Records:
        """The texts of records of one task; their streams are looked up once each, or once an epoch."""
        passes, of = np.unique(draws.streams << 32 | draws.epochs, return_inverse=True)
        order = np.argsort(of, kind="stable")
        groups = np.split(order, np.cumsum(np.bincount(of))[:-1])
        corpora = np.empty(len(order), np.int64)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for one, mine in zip(passes.tolist(), groups, strict=True):
            stream, records = self.streams[one >> 32], draws.records[mine]
            corpora[mine], sides = stream.segments_of(records, one & 0xFFFFFFFF, self.seed)
            found.append((mine, sides))
        segments = np.full((len(order), max(sides.shape[1] for _, sides in found)), -1, np.int64)
        for mine, sides in found:
            segments[mine, : sides.shape[1]] = sides
        if settings.reads_rows:
            segments = self._with_rows(corpora, segments)
        there = segments >= 0
        counts = there.sum(1)
        texts = read_texts(
            list(self.store.corpora.values()), np.repeat(corpora, counts), segments[there], self.taught
        )
        return Records(texts, counts, draws)

    def _with_rows(self, corpora: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """(n, columns) ``segments`` of one text each, and after it the other texts of its row; -1 for none."""
        of = list(self.store.corpora.values())
        rows = [
            [own, *(other for other in of[number].row_of(own) if other != own)]
            for number, own in zip(corpora.tolist(), segments[:, 0].tolist(), strict=True)
        ]
        found = np.full((len(rows), max(map(len, rows))), -1, np.int64)
        for into, row in zip(found, rows, strict=True):
            into[: len(row)] = row
        return found

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
