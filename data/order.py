"""What comes next in every stream: its records in the order of each epoch, with the tokens to set aside for them.

A record is found from its place alone (data/keys.py), so nothing is shuffled and nothing is kept; what was looked up is
remembered until it is taken, since looking up many records at once costs little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.epochs import Epochs
from data.keys import key, permuted_parts
from data.sampling import Stream

_AHEAD = 64  # records of a stream that are looked up at once, where one is asked for
_MARGIN = 1.05  # of the records that an estimate says


class Stretch(NamedTuple):
    """Consecutive records of a stream, from the one after ``first`` others."""

    first: int
    records: np.ndarray  # (k,) int64, numbers in the stream
    epochs: np.ndarray  # (k,) int64
    rooms: np.ndarray  # (k,) int64, tokens to set aside

    @property
    def end(self) -> int:
        """The cursor behind the last."""
        return self.first + len(self.records)

    def upto(self, tokens: int) -> Stretch:
        """As many of them, from the first on, as ``tokens`` hold."""
        count = int(np.searchsorted(np.cumsum(self.rooms), tokens, side="right"))
        return Stretch(self.first, *(column[:count] for column in self[1:]))


_NOTHING = Stretch(0, *(np.empty(0, np.int64) for _ in range(3)))


class Order:
    """The records of S streams by their cursors."""

    def __init__(self, streams: Sequence[Stream], seed: int, maximum_tokens: int) -> None:
        self._streams, self._seed, self._maximum = streams, seed, maximum_tokens
        self._epochs = [Epochs(stream.caps) for stream in streams]
        ends = [epochs.records_in_all for epochs in self._epochs]
        # (S,) the cursors at which streams have come to their end
        self.ends = np.array([np.iinfo(np.int64).max if end is None else end for end in ends])
        self._known = [_NOTHING] * len(streams)
        # The next ones of each stream as Python's numbers, after how many others: for those who ask one by one.
        self._rows: list[tuple[int, list[tuple[int, int, int]]]] = [(0, []) for _ in streams]

    def record(self, number: int, cursor: int) -> tuple[int, int, int]:
        """The record of a stream at ``cursor`` as (record, epoch, room)."""
        first, rows = self._rows[number]
        if not first <= cursor < first + len(rows):
            known = self._known[number]
            if not known.first <= cursor < known.end:
                known = self._known[number] = self._looked_up([(number, cursor, _AHEAD, True)])[0]
            here = slice(cursor - known.first, cursor - known.first + _AHEAD)
            first, rows = cursor, list(zip(*(column[here].tolist() for column in known[1:]), strict=True))
            self._rows[number] = first, rows
        return rows[cursor - first]

    def up_to(self, cursors: np.ndarray, tokens: np.ndarray) -> list[Stretch]:
        """Of every stream the records from its cursor (S,) on that ``tokens`` (S,) hold, as many as there are."""
        known = [self._from(number, int(cursor)) for number, cursor in enumerate(cursors)]
        while True:
            lacking = []
            for number, stretch in enumerate(known):
                held = int(stretch.rooms.sum())
                if held <= tokens[number] and stretch.end < self.ends[number] and tokens[number] > 0:
                    mean = held / len(stretch.rooms) if held else self._maximum
                    count = int((tokens[number] - held) / mean * _MARGIN) + _AHEAD
                    lacking.append((number, stretch.end, count, False))
            if not lacking:
                break
            for (number, *_), found in zip(lacking, self._looked_up(lacking), strict=True):
                columns = zip(known[number][1:], found[1:], strict=True)
                joined = (np.concatenate(both) for both in columns)
                known[number] = Stretch(known[number].first, *joined)
        self._known = known
        return [stretch.upto(int(wanted)) for stretch, wanted in zip(known, tokens, strict=True)]

    def _from(self, number: int, cursor: int) -> Stretch:
        known = self._known[number]
        if not known.first <= cursor <= known.end:
            return _NOTHING._replace(first=cursor)
        return Stretch(cursor, *(column[cursor - known.first :] for column in known[1:]))

    def _looked_up(self, asked: Sequence[tuple[int, int, int, bool]]) -> list[Stretch]:
        """Records for each of (stream, cursor, how many, whether those of one epoch will do), at least one each."""
        parts: list[tuple[int, int, int, int]] = []  # stream, epoch, first position in it, how many
        for number, cursor, count, one_epoch in asked:
            count = min(count, int(self.ends[number]) - cursor)
            while count > 0:
                epoch, position = self._epochs[number].place(cursor)
                here = min(count, self._epochs[number].size(epoch) - position)
                parts.append((number, epoch, position, here))
                cursor, count = cursor + here, 0 if one_epoch else count - here
        positions = permuted_parts(
            [(first, count) for _, _, first, count in parts],
            [self._epochs[number].size(epoch) for number, epoch, _, _ in parts],
            [key(self._seed, self._streams[number].name, epoch, "order") for number, epoch, _, _ in parts],
        )
        found: dict[int, list[tuple[np.ndarray, ...]]] = {number: [] for number, *_ in asked}
        for (number, epoch, _, count), part in zip(parts, positions, strict=True):
            records = self._epochs[number].records(epoch, part)
            rooms = self._streams[number].room(records, epoch, self._seed, self._maximum)
            found[number].append((records, np.full(count, epoch, np.int64), rooms.astype(np.int64)))
        return [
            Stretch(cursor, *(np.concatenate(column) for column in zip(*found[number], strict=True)))
            for number, cursor, _, _ in asked
        ]
