"""Which segments of a store belong together: those of a language, of a pair of languages, the rows of a triplet.

corpus ──▶ chunk by chunk: segments by language, or pairs of them by languages ──▶ a rule, or a list of numbers

Most of these lists are a rule (first + step * i): every segment of a corpus in one language, every second one of a
bitext. One that is none is kept in memory if the corpus is small, and else in a file that is mapped, in a folder beside
the store: what a process holds does not grow with the records. Whoever needs it first makes it; the others wait.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.recipe import UserError
from data.store import Corpus, TokenStore

_SMALL = 1 << 20  # segments of a corpus whose lists every process makes anew: at most 8 MB a list
_CHUNK = 1 << 20  # segments that are looked at at once
_META = "lists.json"


@dataclass(frozen=True, slots=True)
class Rule:
    """first, first + step, ...: ``count`` numbers, to be indexed as an array of them is."""

    first: int
    step: int
    count: int

    def __len__(self) -> int:
        """How many."""
        return self.count

    def __getitem__(self, places: Any) -> Any:
        """Those at ``places``, which are no more than there are."""
        return self.first + self.step * np.asarray(places, np.int64)


class Listed(NamedTuple):
    """What of a corpus belongs to one language or pair of languages."""

    # numbers of segments, of each side of a record; of rows, for triplets
    sides: tuple[np.ndarray | Rule, ...]
    tokens: int  # of all of them


Lists = dict[tuple[int, ...], Listed]  # by numbers of languages


class _Chunk(NamedTuple):
    """Consecutive rows of a corpus."""

    first_row: int
    starts: np.ndarray  # (k + 1,) the first segment of each row, and the end
    languages: np.ndarray  # (s,) of their segments
    lengths: np.ndarray  # (s,) int64


_Found = Iterator[tuple[tuple[int, ...], tuple[np.ndarray, ...], int]]  # languages, sides, tokens


class Index:
    """The lists of a store's corpora."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store

    def texts(self, corpus: Corpus) -> Lists:
        """The segments of every language."""
        return self._lists(corpus, "texts", _texts_of)

    def pairs(self, corpus: Corpus, wanted: str) -> Lists:
        """The two segments of every pair of languages in a row, a pair's in the order of their numbers.

        ``wanted`` is "all", or the language that a pair has to hold.
        """
        allowed = [number for number, name in enumerate(self._store.languages) if wanted in ("all", name)]
        return self._lists(corpus, f"pairs-{wanted}", lambda chunk: _pairs_of(chunk, allowed))

    def triplets(self, corpus: Corpus, negatives: int) -> Lists:
        """The rows by the languages of anchor and positive; of their texts ``negatives`` are read at most."""
        return self._lists(corpus, f"triplets-{negatives}", lambda chunk: _triplets_of(chunk, 2 + negatives))

    def _lists(self, corpus: Corpus, name: str, look: Callable[[_Chunk], _Found]) -> Lists:
        if corpus.segments < _SMALL:
            return _made(corpus, look, None)
        folder = self._store.folder.with_name(f"{self._store.folder.name}.index")
        place = folder / f"{corpus.name}.{name}"
        try:
            folder.mkdir(exist_ok=True)
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._is_made(place):
                    self._make(place, corpus, look)
        except OSError as error:
            raise UserError(
                f"{folder}: can not be written ({error.strerror}). Lists of the store's texts are kept there;"
                " make room, or give the right to write beside the store."
            ) from None
        return _read(place)

    def _is_made(self, place: Path) -> bool:
        try:
            found = json.loads((place / _META).read_text())
        except (OSError, ValueError):
            return False
        return bool(found["store"] == self._store.fingerprint)

    def _make(self, place: Path, corpus: Corpus, look: Callable[[_Chunk], _Found]) -> None:
        new = place.with_name(f"{place.name}.new")
        for old in (new, place):
            shutil.rmtree(old, ignore_errors=True)
        new.mkdir()
        lists = [
            {
                "languages": languages,
                "tokens": tokens,
                "sides": [
                    {"rule": [side.first, side.step, side.count]}
                    if isinstance(side, Rule)
                    else {"file": _file(languages, n), "kind": side.dtype.name}
                    for n, side in enumerate(sides)
                ],
            }
            for languages, (sides, tokens) in _made(corpus, look, new).items()
        ]
        (new / _META).write_text(json.dumps({"store": self._store.fingerprint, "lists": lists}))
        new.rename(place)


def _read(place: Path) -> Lists:
    def side(values: dict[str, Any]) -> np.ndarray | Rule:
        if "rule" in values:
            return Rule(*values["rule"])
        return np.asarray(np.memmap(place / values["file"], values["kind"], "r"))

    found = json.loads((place / _META).read_text())["lists"]
    return {
        tuple(one["languages"]): Listed(tuple(side(values) for values in one["sides"]), one["tokens"])
        for one in found
    }


def _made(corpus: Corpus, look: Callable[[_Chunk], _Found], folder: Path | None) -> Lists:
    """The lists, those that are no rule in memory, or in ``folder``."""
    kind = np.uint32 if corpus.segments < 1 << 32 else np.int64
    sides: dict[tuple[int, ...], tuple[_Growing, ...]] = {}
    tokens: dict[tuple[int, ...], int] = {}
    for chunk in _chunks(corpus):
        for languages, found, count in look(chunk):
            if languages not in sides:
                places = [folder and folder / _file(languages, n) for n in range(len(found))]
                sides[languages] = tuple(_Growing(place, kind) for place in places)
                tokens[languages] = 0
            for side, numbers in zip(sides[languages], found, strict=True):
                side.add(numbers)
            tokens[languages] += count
    return {of: Listed(tuple(side.done() for side in sides[of]), tokens[of]) for of in sorted(sides)}


class _Growing:
    """A list that is being made: a rule for as long as it is one."""

    def __init__(self, place: Path | None, kind: Any) -> None:
        self._place, self._kind = place, kind
        self._rule: Rule | None = Rule(0, 1, 0)
        self._parts: list[np.ndarray] = []

    def add(self, numbers: np.ndarray) -> None:
        """``numbers`` (n,), n > 0, behind those that are there."""
        rule = self._rule
        if rule is not None:
            if rule.count == 0:
                rule = Rule(int(numbers[0]), 1, 0)
            if rule.count < 2 and rule.count + len(numbers) > 1:
                second = int(numbers[1 - rule.count])
                rule = Rule(rule.first, second - rule.first, rule.count)
            expected = rule[np.arange(rule.count, rule.count + len(numbers))]
            if np.array_equal(expected, numbers):
                self._rule = Rule(rule.first, rule.step, rule.count + len(numbers))
                return
            if self._rule is not None and self._rule.count:
                self._keep(self._rule)
            self._rule = None
        self._append(numbers)

    def _keep(self, rule: Rule) -> None:
        for begin in range(0, rule.count, _CHUNK):
            self._append(rule[np.arange(begin, min(begin + _CHUNK, rule.count))])

    def _append(self, numbers: np.ndarray) -> None:
        part = numbers.astype(self._kind)
        if self._place is None:
            self._parts.append(part)
            return
        with self._place.open("ab") as file:
            part.tofile(file)

    def done(self) -> np.ndarray | Rule:
        """The whole."""
        if self._rule is not None:
            return self._rule
        if self._place is None:
            return np.concatenate(self._parts)
        return np.asarray(np.memmap(self._place, self._kind, "r"))


def _file(languages: tuple[int, ...], side: int) -> str:
    return f"{'-'.join(map(str, languages))}.{side}"


# ---- what stands in a chunk -------------------------------------------------------------------------------


def _chunks(corpus: Corpus) -> Iterator[_Chunk]:
    rows = max(1, int(_CHUNK * corpus.records / max(1, corpus.segments)))
    for first in range(0, corpus.records, rows):
        starts = np.asarray(corpus.record_starts[first : min(first + rows, corpus.records) + 1])
        here = slice(int(starts[0]), int(starts[-1]))
        lengths = np.asarray(corpus.segment_lengths[here], np.int64)
        yield _Chunk(first, starts, np.asarray(corpus.segment_language[here]), lengths)


def _texts_of(chunk: _Chunk) -> _Found:
    for number in np.unique(chunk.languages).tolist():
        here = np.flatnonzero(chunk.languages == number)
        yield (number,), (chunk.starts[0] + here,), int(chunk.lengths[here].sum())


def _pairs_of(chunk: _Chunk, allowed: Sequence[int]) -> _Found:
    present = np.unique(chunk.languages).tolist()
    rows = np.repeat(np.arange(len(chunk.starts) - 1), np.diff(chunk.starts))
    places = np.full((len(present), len(chunk.starts) - 1), -1, np.int64)  # of a language in a row
    for of_language, number in zip(places, present, strict=True):
        here = np.flatnonzero(chunk.languages == number)
        of_language[rows[here]] = here
    for (one, left), (other, right) in combinations(zip(present, places, strict=True), 2):
        if one not in allowed and other not in allowed:
            continue
        both = (left >= 0) & (right >= 0)
        if both.any():
            sides = left[both], right[both]
            tokens = int(sum(chunk.lengths[side].sum() for side in sides))
            yield (one, other), tuple(chunk.starts[0] + side for side in sides), tokens


def _triplets_of(chunk: _Chunk, most: int) -> _Found:
    """``most`` texts of a triplet are read."""
    starts = chunk.starts[:-1] - chunk.starts[0]
    sizes = np.minimum(np.diff(chunk.starts), most)
    ends = np.concatenate([[0], np.cumsum(chunk.lengths)])
    tokens = ends[starts + sizes] - ends[starts]
    sides = np.sort(np.stack([chunk.languages[starts], chunk.languages[starts + 1]], 1), axis=1)
    for pair in np.unique(sides, axis=0).tolist():
        here = np.flatnonzero((sides == pair).all(1))
        yield tuple(dict.fromkeys(pair)), (chunk.first_row + here,), int(tokens[here].sum())
