"""The (task x language) streams of a run: which records each task reads in each language or pair of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from data.index import Index, Lists, Rule
from data.keys import hashed, key
from data.lexicon import Lexicon
from data.mixed_alignment import both_sides_mixed
from data.recipe import UserError
from data.settings.mixed_alignment import MixedAlignmentConfig
from data.settings.task import BackTranslationConfig, TaskConfig, TranslationAlignmentConfig, TripletConfig
from data.settings.tasks import TasksConfig
from data.stages import SamplingConfig
from data.store import Corpus, TokenStore
from data.task import Task
from data.tasks import TASKS


class Numbers(Protocol):
    """A column of the store, or an array."""

    def __getitem__(self, places: Any, /) -> Any:
        """Those at ``places``."""


@dataclass(frozen=True, slots=True)
class Part:
    """The records of a stream that come from one corpus."""

    corpus: int  # its number in the store
    # numbers (n,) of segments: one for a text, two for a pair; of rows for triplets
    sides: tuple[np.ndarray | Rule, ...]
    lengths: Numbers  # tokens of the corpus's segments
    tokens: int  # of all these records
    cap: int | None = None  # how often they may be read; without end
    # Where texts of a row are taken beside those of a record, or the row is the record:
    segment_record: Numbers | None = None  # the row of each segment
    record_starts: Numbers | None = None  # the first segment of each row, and the end

    def __len__(self) -> int:
        """The number of records."""
        return len(self.sides[0])


@dataclass(frozen=True, slots=True)
class Stream:
    """All records that one task reads in one language or pair of languages; those of each part in turn."""

    name: str  # task/language
    task: Task
    languages: tuple[str, ...]  # one, or the two of a pair
    parts: tuple[Part, ...]
    settings: TaskConfig = TaskConfig()
    further: int = 0  # how many texts of its row an example may hold beside those of the record
    texts_of_row: int = 0  # where a row is the record: how many of its texts are read, at most

    def __len__(self) -> int:
        """The number of records."""
        return sum(len(part) for part in self.parts)

    @property
    def tokens(self) -> int:
        """Of all its texts."""
        return sum(part.tokens for part in self.parts)

    @property
    def caps(self) -> tuple[tuple[int, int | None], ...]:
        """(records, how often they may be read) of each part."""
        return tuple((len(part), part.cap) for part in self.parts)

    def room(self, records: np.ndarray, epoch: int, seed: int, maximum_tokens: int) -> np.ndarray:
        """Tokens to set aside for ``records`` (k,) in an epoch."""
        of_sides = self._lengths(records, epoch, seed)
        if isinstance(self.settings, MixedAlignmentConfig):
            both = both_sides_mixed(self.settings.both_mixed, self.name, records, epoch, seed)
            of_sides.append(np.where(both, of_sides[0], -1))
        return self.task.room(of_sides, maximum_tokens, self.languages, self.settings)

    def _lengths(self, records: np.ndarray, epoch: int, seed: int) -> list[np.ndarray]:
        """Tokens (k,) of each text of ``records``, -1 where there is none."""
        if len(self.parts) == 1 and not (self.texts_of_row or self.further):  # as most streams are
            (part,) = self.parts
            return [np.asarray(part.lengths[side[records]], np.int64) for side in part.sides]
        corpora, segments = self.segments_of(records, epoch, seed)
        lengths = np.full(segments.shape, -1, np.int64)
        for part in self.parts:
            here = (corpora == part.corpus)[:, None] & (segments >= 0)
            lengths[here] = part.lengths[segments[here]]
        return list(lengths.T)

    def segments_of(self, records: np.ndarray, epoch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Of ``records`` (k,) in an epoch the numbers of their corpora (k,) and their segments (k, sides).

        Those that are drawn from their rows included; -1 where there is none.
        """
        corpora = np.empty(len(records), np.int64)
        sides = self.texts_of_row or len(self.parts[0].sides)
        segments = np.empty((len(records), sides + self.further), np.int64)
        first = 0
        for part in self.parts:
            here: Any = slice(None)
            if len(self.parts) > 1:
                here = np.flatnonzero((records >= first) & (records < first + len(part)))
                if not len(here):
                    first += len(part)
                    continue
            corpora[here] = part.corpus
            mine = records[here]
            if self.texts_of_row:
                segments[here] = self._row(part, mine - first)
            else:
                for column, side in enumerate(part.sides):
                    segments[here, column] = side[mine - first]
                if self.further:
                    segments[here, sides:] = self._further(part, mine, segments[here, :sides], epoch, seed)
            first += len(part)
        return corpora, segments

    def _row(self, part: Part, places: np.ndarray) -> np.ndarray:
        """(k, texts_of_row) the segments of whole rows."""
        assert part.record_starts is not None
        rows = np.asarray(part.sides[0][places], np.int64)
        segments = part.record_starts[rows][:, None] + np.arange(self.texts_of_row)
        return np.where(segments < part.record_starts[rows + 1][:, None], segments, -1)

    def _further(
        self, part: Part, records: np.ndarray, taken: np.ndarray, epoch: int, seed: int
    ) -> np.ndarray:
        """(k, further) other segments of the records' rows, drawn evenly: -1 where a draw repeats another."""
        assert part.segment_record is not None and part.record_starts is not None
        rows = part.segment_record[taken[:, 0]]
        starts = part.record_starts[rows]
        sizes = (part.record_starts[rows + 1] - starts).astype(np.uint64)
        draws = hashed(_keys_of_draws(seed, self.name, epoch, self.further), records[:, None])
        segments = starts[:, None] + (draws % sizes[:, None]).astype(np.int64)
        of_record = np.concatenate([taken, segments], axis=1)
        for column in range(taken.shape[1], of_record.shape[1]):
            repeated = (of_record[:, :column] == of_record[:, column, None]).any(1)
            of_record[repeated, column] = -1
        return of_record[:, taken.shape[1] :]


@lru_cache(maxsize=1 << 12)
def _keys_of_draws(seed: int, stream: str, epoch: int, count: int) -> np.ndarray:
    return np.array([key(seed, stream, epoch, "further", number) for number in range(count)], np.uint64)


def streams_of(
    store: TokenStore, tasks: TasksConfig, sampling: SamplingConfig, lexicon: Lexicon | None
) -> list[Stream]:
    """The streams of the enabled tasks, in the order of the table and of the languages' names.

    Raises:
        UserError: a task is on and the store has nothing for it.

    """
    pools = _pools(store, tasks, sampling)
    streams: list[Stream] = []
    for name, settings in tasks.enabled().items():
        task = TASKS[name]
        further = settings.texts - 2 if isinstance(settings, TranslationAlignmentConfig) else 0
        lack = settings.lacks(lexicon)
        if lack is not None:
            raise UserError(f"task {name} {lack}")
        pool = {
            of: [each for each in parts if settings.serves(lexicon, of, each[0].kind)]
            for of, parts in sorted(pools[_pool_of(name, task)].items())
        }
        found = [
            Stream(
                f"{name}/{'-'.join(of)}",
                task,
                of,
                tuple(part for _, part in parts),
                settings,
                further,
                texts_of_row=2 + settings.negatives if isinstance(settings, TripletConfig) else 0,
            )
            for of, parts in pool.items()
            if parts
        ]
        writes = isinstance(settings, BackTranslationConfig) or (
            isinstance(settings, MixedAlignmentConfig) and settings.generates
        )
        if writes and not pools["pairs"]:
            raise UserError(
                f"task {name} writes in languages that have bilingual text, and there is no parallel corpus: add one,"
                " or leave it out."
            )
        if not found:
            kinds = {
                "pairs": "parallel",
                "sentences": "monolingual",
                "texts": "training",
                "triplets": "scored",
            }
            what = kinds[task.reads]
            restricted = task.reads == "pairs" and sampling.pairs != "all"
            where = f" with language {sampling.pairs!r} (sampling.pairs)" if restricted else ""
            raise UserError(
                f"task {name} is on but there is no {what} corpus for it{where}: add one, or leave it out."
            )
        streams += found
    if not streams:
        raise UserError("no task is on: name at least one under 'tasks'. Tasks: " + ", ".join(TASKS))
    return streams


def bilingual_shares(store: TokenStore, sampling: SamplingConfig) -> np.ndarray:
    """(L,) the part of each language when one with bilingual text is drawn; zeros where there is no such text.

    By tokens to the power of the languages' temperature, as at the start of the run: what is drawn for a record must
    not depend on when it comes.
    """
    tokens, index = np.zeros(len(store.languages)), Index(store)
    for corpus in store.corpora.values():
        if corpus.kind == "parallel" and not corpus.held_out:
            for (language,), listed in index.texts(corpus).items():
                tokens[language] += listed.tokens
    shares = np.where(tokens > 0, tokens ** sampling.at(0).language_temperature, 0.0)
    return shares / max(1.0, shares.sum())


Pool = dict[tuple[str, ...], list[tuple[Corpus, Part]]]  # by language, or by the two of a pair


def _pool_of(name: str, task: Task) -> str:
    """What a task reads; of triplets each task reads as many texts as it wants to."""
    return f"triplets of {name}" if task.reads == "triplets" else task.reads


def _pools(store: TokenStore, tasks: TasksConfig, sampling: SamplingConfig) -> dict[str, Pool]:
    """What can be read: of each kind the parts by language, or by the two of a pair in the order of their names."""
    index = Index(store)
    pools: dict[str, Pool] = {_pool_of(name, task): {} for name, task in TASKS.items()}

    def add(pool: Pool, corpus: Corpus, number: int, lists: Lists) -> None:
        for of, (sides, tokens) in lists.items():
            part = Part(
                number,
                sides,
                corpus.segment_lengths,
                tokens,
                sampling.cap(corpus.name),
                corpus.segment_record,
                corpus.record_starts,
            )
            pool.setdefault(tuple(store.languages[one] for one in of), []).append((corpus, part))

    for number, corpus in enumerate(store.corpora.values()):
        if corpus.held_out:
            continue
        if corpus.kind == "scored":
            for name, settings in tasks.triplets().items():
                pool = pools[_pool_of(name, TASKS[name])]
                add(pool, corpus, number, index.triplets(corpus, settings.negatives))
            continue
        texts = index.texts(corpus)
        add(pools["texts"], corpus, number, texts)
        if corpus.kind == "monolingual":
            add(pools["sentences"], corpus, number, texts)
        else:
            add(pools["pairs"], corpus, number, index.pairs(corpus, sampling.pairs))
    return pools
