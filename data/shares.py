"""The share of the tokens that every stream is due: a pure function of how far the run is and of what was decided.

    budgets ─▶ sides ─▶ weights ─▶ tasks ─▶ gates, shifts ─▶ temperature, floors ─▶ streams (task x language)

Streams that have come to their end take no part; their share goes to the others of their task, else of their side,
else to the other side, else to whatever can still be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.recipe import UserError
from data.settings.tasks import TasksConfig, gates_of
from data.stages import Sampling, SamplingConfig
from data.tasks import TASKS

if TYPE_CHECKING:
    from data.sampling import Stream

Decisions = Mapping[str, float]


_WHILE_SHUT = {"btmlm": "mmlm"}  # a task whose gate is shut -> the task that has its budget meanwhile


class Mix(NamedTuple):
    """What holds for one step."""

    stage: int  # from 0
    language_temperature: float
    pair_temperature: float
    shares: (
        np.ndarray
    )  # (S,) the part of the tokens that each stream is due: 1 in all, or 0 if nothing is left
    shut: tuple[str, ...] = ()  # the names of the gates that are not open


class Shares:
    """Shares of S streams.

    Decisions that it knows: ``moved/A/B``, the part of task A's budget that task B gets; ``gate/A``: task A is open.
    """

    def __init__(self, streams: Sequence[Stream], tasks: TasksConfig, sampling: SamplingConfig) -> None:
        """Check that every stage has something to read.

        Raises:
            UserError: a stage has no budget for any task that is on, or a floor can not be kept.

        """
        self._sampling = sampling
        self._weights = {name: settings.weight for name, settings in tasks.enabled().items()}
        self._gates = gates_of(tasks)
        self._members = {
            name: np.array([i for i, stream in enumerate(streams) if stream.task.name == name])
            for name in self._weights
        }
        self._tokens = np.array([stream.tokens for stream in streams], float)
        self._languages = [stream.languages for stream in streams]
        self._last: tuple[object, np.ndarray] = (None, self._tokens)
        for begin in sampling.begins():
            self._check(begin)

    def __call__(self, tokens: int, exhausted: np.ndarray, decisions: Decisions) -> Mix:
        """The mix when ``tokens`` are planned; ``exhausted`` (S,) says which streams have nothing left."""
        now = self._sampling.at(tokens)
        temperatures = now.language_temperature, now.pair_temperature
        shut = self._shut(tokens, decisions)
        asked = now.stage, temperatures, exhausted.tobytes(), shut, tuple(sorted(decisions.items()))
        if self._last[0] != asked:
            self._last = asked, self._shares(now, ~exhausted, shut, decisions)
        return Mix(now.stage, *temperatures, self._last[1], shut)

    def _shut(self, tokens: int, decisions: Decisions) -> tuple[str, ...]:
        return tuple(
            name
            for name, gate in self._gates.items()
            if f"gate/{name}" not in decisions and (gate.tokens is None or tokens < gate.tokens)
        )

    def _shares(
        self, now: Sampling, open_: np.ndarray, shut: Sequence[str], decisions: Decisions
    ) -> np.ndarray:
        shares = np.zeros(len(open_))
        anything = {name: w for name, w in self._weights.items() if open_[self._members[name]].any()}
        for name, part in (self._parts(now, open_, shut, decisions) or anything).items():
            members = self._members[name][open_[self._members[name]]]
            paired = TASKS[name].reads in ("pairs", "triplets")
            due = self._tokens[members] ** (now.pair_temperature if paired else now.language_temperature)
            shares[members] = part * due / due.sum()
            floors = self._floors(now.floor, members)
            if floors:
                shares[members] = part * with_floors(
                    due / due.sum(), [self._languages[i] for i in members], floors
                )
        return shares / shares.sum() if shares.sum() > 0 else shares

    def _parts(
        self, now: Sampling, open_: np.ndarray, shut: Sequence[str], decisions: Decisions
    ) -> dict[str, float]:
        """The part of each task that has something to read, not yet divided by their sum."""
        weights = {
            name: now.weights.get(name, weight)
            for name, weight in self._weights.items()
            if open_[self._members[name]].any()
        }
        for name in shut:
            weight = weights.pop(name, 0.0)
            if _WHILE_SHUT.get(name) in weights:
                weights[_WHILE_SHUT[name]] += weight
        parts: dict[str, float] = {}
        for side, budget in now.budgets.model_dump().items():
            names = [name for name in weights if TASKS[name].side == side]
            total = sum(weights[name] for name in names)
            parts |= {name: budget * weights[name] / total for name in names if total > 0}
        before = dict(parts)
        for name, value in decisions.items():
            if not name.startswith("moved/"):
                continue
            _, giver, taker = name.split("/")
            if giver in parts and taker in parts:
                parts[giver] -= value * before[giver]
                parts[taker] += value * before[giver]
        return {name: part for name, part in parts.items() if part > 0}

    @staticmethod
    def _of(languages: Iterable[Sequence[str]]) -> list[str]:
        return sorted({language for of in languages for language in of})

    def _floors(self, floor: float | Mapping[str, float], members: np.ndarray) -> dict[str, float]:
        """language -> floor, of the languages that ``members`` read."""
        present = self._of(self._languages[i] for i in members)
        if isinstance(floor, Mapping):
            return {language: floor[language] for language in present if floor.get(language)}
        return dict.fromkeys(present, floor) if floor else {}

    def _check(self, begin: int) -> None:
        now = self._sampling.at(begin)
        where = f"sampling.stages.{now.stage}" if self._sampling.stages else "sampling"
        if not self._parts(now, np.ones(len(self._tokens), bool), (), {}):
            raise UserError(f"the budgets leave nothing for the tasks that are on: see '{where}.budgets'.")
        known = self._of(self._languages)
        if isinstance(now.floor, Mapping):
            unknown = [language for language in now.floor if language not in known]
            if unknown:
                raise UserError(
                    f"'{where}.language_floor' names {', '.join(unknown)}; languages: {', '.join(known)}."
                )
        else:
            most = max(len(self._of(self._languages[i] for i in m)) for m in self._members.values())
            if now.floor * most > 1 + 1e-9:
                raise UserError(
                    f"'{where}.language_floor' {now.floor}: {most} languages of a task can have at most"
                    f" {1 / most:.4g} each."
                )


def with_floors(
    shares: np.ndarray, languages: Sequence[Sequence[str]], floors: Mapping[str, float]
) -> np.ndarray:
    """``shares`` (n,) of a task's streams, changed as little as needed so that no language is below its floor.

    A language has the shares of all streams that hold it: with pairs, one stream counts for two. One that is below
    its floor is raised to it, its streams in proportion; the rest shrinks in proportion, which may bring others to
    their floors. The floors add up to at most 1, so each stream's part of a floor can be kept at once.
    """
    holds = {
        language: np.array([i for i, of in enumerate(languages) if language in of]) for language in floors
    }
    least = np.zeros(len(shares))
    found = shares
    while True:
        low = [language for language in floors if found[holds[language]].sum() < floors[language] - 1e-9]
        if not low:
            return found
        for language in low:
            own = shares[holds[language]]
            np.maximum.at(least, holds[language], floors[language] * own / own.sum())
        found = _raised(shares, least)


def _raised(shares: np.ndarray, least: np.ndarray) -> np.ndarray:
    """``shares`` (n,) with none below its ``least``; those above it in their old proportions."""
    low = np.zeros(len(shares), bool)
    while True:
        free = shares[~low].sum()
        found = np.where(low, least, shares * max(0.0, 1 - least[low].sum()) / free if free > 0 else 0.0)
        lower = low | (found < least)
        if (lower == low).all():
            return found / found.sum()
        low = lower
