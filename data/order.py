"""What comes next in every stream: its records in the order of each epoch, with the tokens to set aside for them.

A record is found from its place alone (data/permutation.py), so nothing is shuffled and nothing is kept; what was
looked up is remembered until it is taken, since looking up many records at once costs little more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data.epochs import Epochs
from data.keys import key
from data.permutation import Permutation, permuted_parts
from data.ragged import starts_of, sums
from data.sampling import Stream

_AHEAD = 64  # records of a stream that are looked up at once, where one is asked for
_MARGIN = 1.02  # of the records that an estimate says


class Stretches(NamedTuple):
    """Consecutive records of each of S streams; those of all n end to end."""

    firsts: np.ndarray  # (S,) how many records of the stream come before
    counts: np.ndarray  # (S,) how many they are
    table: np.ndarray  # (n, 5) int64: stream, record, epoch, room, and a column that is not filled yet

    @property
    def ends(self) -> np.ndarray:
        """(S,) how many records of the stream come before the first that is not here."""
        return self.firsts + self.counts

    @property
    def rooms(self) -> np.ndarray:
        """(n,) tokens to set aside."""
        return np.ascontiguousarray(self.table[:, 3])

    def cut(self, skipped: np.ndarray, counts: np.ndarray) -> Stretches:
        """Of every stream ``counts`` (S,) records after the first ``skipped`` (S,)."""
        begins = starts_of(self.counts) + skipped
        ranges = zip(begins.tolist(), (begins + counts).tolist(), strict=True)
        table = np.concatenate([self.table[begin:end] for begin, end in ranges])
        return Stretches(self.firsts + skipped, counts, table)


class Order:
    """The records of S streams by their cursors."""

    def __init__(self, streams: Sequence[Stream], seed: int, maximum_tokens: int) -> None:
        self._streams, self._seed, self._maximum = streams, seed, maximum_tokens
        self._epochs = [Epochs(stream.caps) for stream in streams]
        ends = [epochs.records_in_all for epochs in self._epochs]
        # (S,) the cursors at which streams have come to their end
        self.ends = np.array([np.iinfo(np.int64).max if end is None else end for end in ends])
        nothing = np.zeros(len(streams), np.int64)
        self._known = Stretches(nothing, nothing, np.empty((0, 5), np.int64))
        # Where the known ones of each stream are: the cursors of the first and the end, and the first's place.
        self._where: list[tuple[int, int, int]] = [(0, 0, 0)] * len(streams)
        self._means = np.zeros(len(streams))  # tokens of a record, of the last that were known; 0: none were
        # Of the epochs that are read, and those before: what a permutation tabulates serves a whole epoch.
        self._permutation = lru_cache(2 * len(streams))(self._permutation_of)
        # The next ones of each stream as Python's numbers, after how many others: for those who ask one by one.
        self._rows: list[tuple[int, list[list[int]]]] = [(0, []) for _ in streams]

    def following(self, number: int, cursor: int) -> Iterator[list[int]]:
        """The records of a stream from ``cursor`` on, one by one, as [record, epoch, room]."""
        while cursor < self.ends[number]:
            first, rows = self._rows[number]
            if not first <= cursor < first + len(rows):
                first, rows = cursor, self._next_few(number, cursor)[:, 1:4].tolist()
                self._rows[number] = first, rows
            yield from rows[cursor - first :]
            cursor = first + len(rows)

    def _next_few(self, number: int, cursor: int) -> np.ndarray:
        """Rows of the table, one at least."""
        first, end, place = self._where[number]
        if not first <= cursor < end:
            return self._looked_up([(number, cursor, _AHEAD, True)])[0]
        return self._known.table[place + cursor - first : place + min(cursor + _AHEAD, end) - first]

    def up_to(self, cursors: np.ndarray, tokens: np.ndarray) -> Stretches:
        """Of every stream the records from its cursor (S,) on that ``tokens`` (S,) hold, as many as there are."""
        known = self._from(cursors)
        while True:
            rooms = known.rooms
            held = sums(rooms, known.counts)
            lacking = np.flatnonzero((held <= tokens) & (known.ends < self.ends) & (tokens > 0))
            if not len(lacking):
                break
            means = np.where(self._means > 0, self._means, held / np.maximum(1, known.counts))
            means = np.where(means > 0, means, self._maximum)
            wanted = ((tokens - held) / means * _MARGIN).astype(np.int64) + _AHEAD
            known = self._with(known, lacking.tolist(), wanted.tolist())
        self._means = np.where(known.counts > 0, held / np.maximum(1, known.counts), self._means)
        self._known = known
        places = starts_of(known.counts)
        self._where = list(zip(known.firsts.tolist(), known.ends.tolist(), places.tolist(), strict=True))
        before = np.concatenate([[0], np.cumsum(rooms)])
        counts = np.searchsorted(before, before[places] + tokens, side="right") - 1 - places
        return known.cut(np.zeros_like(counts), np.minimum(counts, known.counts))

    def _from(self, cursors: np.ndarray) -> Stretches:
        """What is known of every stream from its cursor on."""
        known = self._known
        within = (known.firsts <= cursors) & (cursors <= known.ends)
        skipped = np.where(within, cursors - known.firsts, known.counts)
        return known.cut(skipped, known.counts - skipped)._replace(firsts=cursors)

    def _with(self, known: Stretches, lacking: Sequence[int], wanted: Sequence[int]) -> Stretches:
        """``known`` and of the streams that are ``lacking`` as many more as are ``wanted`` (S,)."""
        ends = known.ends.tolist()
        found = self._looked_up([(number, ends[number], wanted[number], False) for number in lacking])
        pieces = [[piece] for piece in np.split(known.table, np.cumsum(known.counts)[:-1])]
        counts = known.counts.copy()
        for number, rows in zip(lacking, found, strict=True):
            pieces[number].append(rows)
            counts[number] += len(rows)
        return Stretches(known.firsts, counts, np.concatenate([rows for both in pieces for rows in both]))

    def _looked_up(self, asked: Sequence[tuple[int, int, int, bool]]) -> list[np.ndarray]:
        """Rows of the table for each of (stream, cursor, how many, whether those of one epoch will do)."""
        parts: list[tuple[int, int, int, int]] = []  # stream, epoch, first position in it, how many
        numbers: list[int] = []  # of rows, for each that was asked
        for number, cursor, count, one_epoch in asked:
            count = min(count, int(self.ends[number]) - cursor)
            numbers.append(0)
            while count > 0:
                epoch, position = self._epochs[number].place(cursor)
                here = min(count, self._epochs[number].size(epoch) - position)
                parts.append((number, epoch, position, here))
                numbers[-1] += here
                cursor, count = cursor + here, 0 if one_epoch else count - here
        positions = permuted_parts(
            [(first, count) for _, _, first, count in parts],
            [self._permutation(number, epoch) for number, epoch, _, _ in parts],
        )
        ends = np.cumsum(numbers)
        table = np.empty((ends[-1], 5), np.int64)
        begin = 0
        for (number, epoch, _, count), part in zip(parts, positions, strict=True):
            rows = table[begin : begin + count]
            records = self._epochs[number].records(epoch, part)
            rows[:, 0], rows[:, 1], rows[:, 2] = number, records, epoch
            rows[:, 3] = self._streams[number].room(records, epoch, self._seed, self._maximum)
            begin += count
        return np.split(table, ends[:-1])

    def _permutation_of(self, number: int, epoch: int) -> Permutation:
        size = self._epochs[number].size(epoch)
        return Permutation(size, key(self._seed, self._streams[number].name, epoch, "order"))
