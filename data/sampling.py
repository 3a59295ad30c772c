"""The (task x language) streams of a run, and the share of the tokens that each is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import Field

from data.lexicon import Lexicon
from data.recipe import Section, UserError
from data.store import Corpus, TokenStore
from data.tasks import TASKS, Task, TasksConfig


class BudgetsConfig(Section):
    """How the tokens are split between bilingual and monolingual tasks, as a ratio."""

    bilingual: float = Field(1.0, ge=0)
    monolingual: float = Field(1.0, ge=0)


class SamplingConfig(Section):
    """How often a language is seen: its share is proportional to (its tokens) ** temperature.

    Source: XLM-R (Conneau et al., 2020), alpha 0.3; separately for languages and for pairs of languages.
    """

    budgets: BudgetsConfig = BudgetsConfig()
    language_temperature: float = Field(0.3, ge=0, le=1)
    pair_temperature: float = Field(0.3, ge=0, le=1)
    pairs: Literal["all"] | str = "all"  # every pair of languages, or only those with this language


@dataclass(frozen=True, slots=True)
class Stream:
    """All records that one task reads in one language or pair of languages."""

    name: str  # task/language
    task: Task
    language: str  # "de", or "de-en" for a pair
    corpora: np.ndarray  # (n,) number of the corpus of each record
    segments: tuple[np.ndarray, ...]  # one (n,) array for a text, two for a pair: segments in that corpus
    lengths: tuple[np.ndarray, ...]  # tokens of each segment, alongside

    def __len__(self) -> int:
        """The number of records."""
        return len(self.corpora)

    def room(self, records: np.ndarray, maximum_tokens: int) -> np.ndarray:
        """Tokens to set aside for ``records`` (k,)."""
        return self.task.room([lengths[records].astype(np.int64) for lengths in self.lengths], maximum_tokens)


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
    }
    numbers = {corpus.name: number for number, corpus in enumerate(store.corpora.values())}
    streams: list[Stream] = []
    for name in tasks.enabled():
        task = TASKS[name]
        if task.needs_lexicon and lexicon is None:
            raise UserError(
                f"task {name} needs word translations: name a file under 'lexicons', or leave it out."
            )
        found = [
            _stream(task, language, parts, numbers)
            for language, parts in sorted(pools[task.reads].items())
            if not (task.needs_lexicon and lexicon is not None and language not in lexicon.languages)
        ]
        if not found:
            what = {"pairs": "parallel", "sentences": "monolingual", "texts": "training"}[task.reads]
            where = "" if sampling.pairs == "all" else f" with language {sampling.pairs!r} (sampling.pairs)"
            raise UserError(
                f"task {name} is on but there is no {what} corpus for it{where}: add one, or leave it out."
            )
        streams += found
    if not streams:
        raise UserError("no task is on: name at least one under 'tasks'. Tasks: " + ", ".join(TASKS))
    return streams


def shares_of(streams: Sequence[Stream], tasks: TasksConfig, sampling: SamplingConfig) -> np.ndarray:
    """The part (S,) of all tokens that each stream is due; adds up to 1.

    A side's budget is split by the tasks' weights, a task's by the tokens of its languages to the temperature's
    power. A side without tasks leaves its budget to the other.
    """
    settings = tasks.enabled()
    budgets = sampling.budgets.model_dump()
    shares = np.zeros(len(streams))
    for side, budget in budgets.items():
        names = [name for name in settings if TASKS[name].side == side]
        weights = sum(settings[name].weight for name in names)
        for name in names:
            members = [i for i, stream in enumerate(streams) if stream.task.name == name]
            tokens = np.array(
                [sum(int(lengths.sum()) for lengths in streams[i].lengths) for i in members], float
            )
            paired = TASKS[name].reads == "pairs"
            due = tokens ** (sampling.pair_temperature if paired else sampling.language_temperature)
            shares[members] = budget * settings[name].weight / weights * due / due.sum()
    if shares.sum() <= 0:
        raise UserError("the budgets leave nothing for the tasks that are on: see 'sampling.budgets'.")
    return shares / shares.sum()


Part = tuple[Corpus, tuple[np.ndarray, ...]]


def _by_language(corpora: Sequence[Corpus], languages: Sequence[str]) -> dict[str, list[Part]]:
    pool: dict[str, list[Part]] = {}
    for corpus in corpora:
        for number in np.unique(corpus.segment_language):
            segments = np.flatnonzero(corpus.segment_language == number)
            pool.setdefault(languages[number], []).append((corpus, (segments,)))
    return pool


def _by_pair(corpora: Sequence[Corpus], languages: Sequence[str], wanted: str) -> dict[str, list[Part]]:
    """Every pair of languages of every row, the languages in the order of their names."""
    pool: dict[str, list[Part]] = {}
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
                pool.setdefault("-".join(pair), []).append((corpus, parts))
    return pool


def _stream(task: Task, language: str, parts: Sequence[Part], numbers: dict[str, int]) -> Stream:
    sides = range(len(parts[0][1]))
    return Stream(
        name=f"{task.name}/{language}",
        task=task,
        language=language,
        corpora=np.concatenate([np.full(len(s[0]), numbers[c.name], dtype=np.int32) for c, s in parts]),
        segments=tuple(np.concatenate([segments[side] for _, segments in parts]) for side in sides),
        lengths=tuple(np.concatenate([c.segment_lengths[s[side]] for c, s in parts]) for side in sides),
    )
