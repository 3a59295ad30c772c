"""The (task x language) streams of a run: which records each task reads in each language or pair of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from data.back_translation import BackTranslationConfig
from data.keys import hashed, key
from data.lexicon import Lexicon
from data.mixed_alignment import MixedAlignmentConfig, both_sides_mixed
from data.recipe import UserError
from data.stages import SamplingConfig
from data.store import Corpus, TokenStore
from data.task import Task, TaskConfig
from data.tasks import TASKS, TasksConfig, TranslationAlignmentConfig


@dataclass(frozen=True, slots=True)
class Rows:
    """The multi-way rows of a stream's records, where a task takes further texts from them."""

    further: int  # how many texts beside those of the record, at most
    starts: np.ndarray  # (n,) first segment of each record's row
    sizes: np.ndarray  # (n,) its number of segments
    lengths: tuple[np.ndarray, ...]  # of every corpus: tokens of each segment


@dataclass(frozen=True, slots=True)
class Stream:
    """All records that one task reads in one language or pair of languages."""

    name: str  # task/language
    task: Task
    languages: tuple[str, ...]  # one, or the two of a pair
    corpora: np.ndarray  # (n,) number of the corpus of each record
    # segments in that corpus: one (n,) array for a text, two for a pair; anchor, positive and negatives of a triplet,
    # -1 where it has fewer of them
    segments: tuple[np.ndarray, ...]
    lengths: tuple[np.ndarray, ...]  # tokens of each segment, alongside; -1 where there is none
    settings: TaskConfig = TaskConfig()
    rows: Rows | None = None
    # (records, how often they may be read) of each corpus in turn; empty: all of them without end
    caps: tuple[tuple[int, int | None], ...] = ()

    def __len__(self) -> int:
        """The number of records."""
        return len(self.corpora)

    def room(self, records: np.ndarray, epoch: int, seed: int, maximum_tokens: int) -> np.ndarray:
        """Tokens to set aside for ``records`` (k,) in an epoch."""
        lengths = [lengths[records].astype(np.int64) for lengths in self.lengths]
        if self.rows is not None:
            corpora = self.corpora[records]
            for segments in self._further(records, epoch, seed):
                of_segments = np.full(len(records), -1, dtype=np.int64)
                for corpus in np.unique(corpora):
                    there = (corpora == corpus) & (segments >= 0)
                    of_segments[there] = self.rows.lengths[corpus][segments[there]]
                lengths.append(of_segments)
        if isinstance(self.settings, MixedAlignmentConfig):
            both = both_sides_mixed(self.settings.both_mixed, self.name, records, epoch, seed)
            lengths.append(np.where(both, lengths[0], -1))
        return self.task.room(lengths, maximum_tokens, self.languages, self.settings)

    def segments_of(self, record: int, epoch: int, seed: int) -> list[int]:
        """The segments of one record in an epoch, those drawn from its row included."""
        found = [int(side[record]) for side in self.segments if side[record] >= 0]
        further = self._further(np.array([record]), epoch, seed)
        return found + [int(segments[0]) for segments in further if segments[0] >= 0]

    def _further(self, records: np.ndarray, epoch: int, seed: int) -> list[np.ndarray]:
        """Other segments of the records' rows, drawn evenly: for each draw (k,), -1 where it repeats another."""
        if self.rows is None:
            return []
        taken = [side[records] for side in self.segments]
        drawn: list[np.ndarray] = []
        for number in range(self.rows.further):
            draws = hashed(key(seed, self.name, epoch, "further", number), records)
            sizes = self.rows.sizes[records]
            segments = self.rows.starts[records] + (draws % sizes.astype(np.uint64)).astype(np.int64)
            repeated = np.any([segments == other for other in [*taken, *drawn]], axis=0)
            drawn.append(np.where(repeated, -1, segments))
        return drawn


def streams_of(
    store: TokenStore, tasks: TasksConfig, sampling: SamplingConfig, lexicon: Lexicon | None
) -> list[Stream]:
    """The streams of the enabled tasks, in the order of the table and of the languages' names.

    Raises:
        UserError: a task is on and the store has nothing for it.

    """
    corpora = [corpus for corpus in store.corpora.values() if not corpus.held_out]
    pools = {
        "sentences": _by_language([c for c in corpora if c.kind == "monolingual"], store.languages),
        "texts": _by_language([c for c in corpora if c.kind != "scored"], store.languages),
        "pairs": _by_pair([c for c in corpora if c.kind == "parallel"], store.languages, sampling.pairs),
        "triplets": _by_triplet([c for c in corpora if c.kind == "scored"], store.languages, tasks),
    }
    streams: list[Stream] = []
    for name, settings in tasks.enabled().items():
        task = TASKS[name]
        further = settings.texts - 2 if isinstance(settings, TranslationAlignmentConfig) else 0
        lack = settings.lacks(lexicon)
        if lack is not None:
            raise UserError(f"task {name} {lack}")
        pool = {
            of: [part for part in parts if settings.serves(lexicon, of, part[0].kind)]
            for of, parts in sorted(pools[task.reads].items())
        }
        found = [
            _stream(task, settings, of, parts, list(store.corpora.values()), further, sampling)
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
    tokens = np.zeros(len(store.languages))
    for corpus in store.corpora.values():
        if corpus.kind == "parallel" and not corpus.held_out:
            tokens += np.bincount(corpus.segment_language, corpus.segment_lengths, len(tokens))
    shares = np.where(tokens > 0, tokens ** sampling.at(0).language_temperature, 0.0)
    return shares / max(1.0, shares.sum())


Part = tuple[Corpus, tuple[np.ndarray, ...]]
Pool = dict[tuple[str, ...], list[Part]]  # by language, or by the two of a pair


def _by_language(corpora: Sequence[Corpus], languages: Sequence[str]) -> Pool:
    pool: Pool = {}
    for corpus in corpora:
        for number in np.unique(corpus.segment_language):
            segments = np.flatnonzero(corpus.segment_language == number)
            pool.setdefault((languages[number],), []).append((corpus, (segments,)))
    return pool


def _by_pair(corpora: Sequence[Corpus], languages: Sequence[str], wanted: str) -> Pool:
    """Every pair of languages of every row, the languages in the order of their names."""
    pool: Pool = {}
    for corpus in corpora:
        present = [int(number) for number in np.unique(corpus.segment_language)]
        segment_of = np.full((len(present), len(corpus.record_starts) - 1), -1, dtype=np.int64)
        for row, number in enumerate(present):
            segments = np.flatnonzero(corpus.segment_language == number)
            segment_of[row, corpus.segment_record[segments]] = segments
        for one, other in combinations(range(len(present)), 2):
            pair = languages[present[one]], languages[present[other]]
            both = (segment_of[one] >= 0) & (segment_of[other] >= 0)
            if both.any() and (wanted == "all" or wanted in pair):
                parts = segment_of[one][both], segment_of[other][both]
                pool.setdefault(pair, []).append((corpus, parts))
    return pool


def _by_triplet(corpora: Sequence[Corpus], languages: Sequence[str], tasks: TasksConfig) -> Pool:
    """The triplets of scored corpora by the languages of anchor and candidates, in the order of their names."""
    pool: Pool = {}
    if tasks.adaptive_margin is None:
        return pool
    for corpus in corpora:
        anchors, ends = corpus.record_starts[:-1], corpus.record_starts[1:]
        places = [anchors + 1 + i for i in range(1 + tasks.adaptive_margin.negatives)]
        segments = (anchors, *(np.where(place < ends, place, -1) for place in places))
        sides = np.stack([corpus.segment_language[side] for side in segments[:2]])
        both, of = np.unique(np.sort(sides, axis=0), axis=1, return_inverse=True)
        for number, pair in enumerate(both.T):
            key = tuple(dict.fromkeys(languages[language] for language in pair))
            chosen = of.ravel() == number
            pool.setdefault(key, []).append((corpus, tuple(side[chosen] for side in segments)))
    return pool


def _stream(
    task: Task,
    settings: TaskConfig,
    languages: tuple[str, ...],
    parts: Sequence[Part],
    corpora: Sequence[Corpus],
    further: int,
    sampling: SamplingConfig,
) -> Stream:
    sides = range(len(parts[0][1]))
    numbers = {corpus.name: number for number, corpus in enumerate(corpora)}
    rows = None
    if further:
        of_rows = [c.segment_record[s[0]] for c, s in parts]
        starts = [c.record_starts[rows] for (c, _), rows in zip(parts, of_rows, strict=True)]
        ends = [c.record_starts[rows + 1] for (c, _), rows in zip(parts, of_rows, strict=True)]
        rows = Rows(
            further,
            np.concatenate(starts),
            np.concatenate(ends) - np.concatenate(starts),
            tuple(corpus.segment_lengths for corpus in corpora),
        )
    return Stream(
        name=f"{task.name}/{'-'.join(languages)}",
        task=task,
        settings=settings,
        languages=languages,
        corpora=np.concatenate([np.full(len(s[0]), numbers[c.name], dtype=np.int32) for c, s in parts]),
        segments=tuple(np.concatenate([segments[side] for _, segments in parts]) for side in sides),
        lengths=tuple(np.concatenate([_lengths(c, s[side]) for c, s in parts]) for side in sides),
        rows=rows,
        caps=tuple((len(segments[0]), sampling.cap(corpus.name)) for corpus, segments in parts),
    )


def _lengths(corpus: Corpus, segments: np.ndarray) -> np.ndarray:
    """Tokens of segments, -1 where there is none."""
    return np.where(segments >= 0, corpus.segment_lengths[segments], -1)
