"""What a task is: a row of the table, the material that its function draws on, and what it makes of a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from data.keys import chances, generator, hashed, key
from data.laid import Laid
from data.settings.task import TaskConfig
from data.settings.tasks import LOSSES, Loss
from data.texts import Texts

if TYPE_CHECKING:
    from data.lexicon import Lexicon
    from data.mixing import Mixture
    from data.tokenizer import Tokenizer

SPECIALS = 2  # <s> and </s> of a text


class Material(NamedTuple):
    """What a task's function may draw on."""

    tokenizer: Tokenizer
    lexicon: Lexicon | None
    languages: tuple[str, ...]
    maximum_tokens: int
    # (L,) the probability that pseudo tokens are written in a language: 0 for one without bilingual text.
    bilingual: np.ndarray = np.empty(0)


class Draw(NamedTuple):
    """One record at one time: what keys its randomness, and the tokens that the planner set aside for it."""

    seed: int
    stream: int
    stream_name: str
    record: int
    epoch: int
    room: int
    shut: tuple[str, ...] = ()  # gates that are shut in the step

    def random(self, site: str) -> np.random.Generator:
        """The random numbers of this record and epoch for one use."""
        return generator(self.seed, self.stream_name, self.record, self.epoch, site)


@lru_cache(maxsize=1 << 16)
def _of_epoch(seed: int, stream_name: str, epoch: int) -> int:
    return key(seed, stream_name, epoch, "draws")


@lru_cache(maxsize=1 << 8)
def _of_site(site: str) -> int:
    return key("site", site)


class Draws(NamedTuple):
    """n records at one time, as ``Draw`` is one."""

    seed: int
    names: Mapping[int, str]  # of streams
    streams: np.ndarray  # (n,)
    records: np.ndarray  # (n,)
    epochs: np.ndarray  # (n,)
    rooms: np.ndarray  # (n,)
    shut: tuple[str, ...]
    keys: np.ndarray  # (n,) uint64, of (seed, stream, record, epoch)

    @classmethod
    def planned(
        cls, seed: int, names: Mapping[int, str], table: np.ndarray, shut: tuple[str, ...] = ()
    ) -> Draws:
        """Of rows (n, 4 or more) of a plan: stream, record, epoch, room."""
        streams, records, epochs, rooms = table[:, :4].T
        passes, of = np.unique(streams << 32 | epochs, return_inverse=True)
        of_passes = [_of_epoch(seed, names[each >> 32], each & 0xFFFFFFFF) for each in passes.tolist()]
        keys = hashed(np.array(of_passes, np.uint64)[of], records)
        return cls(seed, names, streams, records, epochs, rooms, shut, keys)

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> Draws:
        """Of records that are at hand one by one."""
        table = np.array([(d.stream, d.record, d.epoch, d.room) for d in draws], np.int64).reshape(-1, 4)
        names = {draw.stream: draw.stream_name for draw in draws}
        return cls.planned(draws[0].seed, names, table, draws[0].shut)

    def one(self, number: int) -> Draw:
        """One of them."""
        stream = int(self.streams[number])
        record, epoch, room = (int(column[number]) for column in (self.records, self.epochs, self.rooms))
        return Draw(self.seed, stream, self.names[stream], record, epoch, room, self.shut)

    def taken(self, which: np.ndarray) -> Draws:
        """Those of the numbers ``which`` (k,), in that order."""
        columns = ("streams", "records", "epochs", "rooms", "keys")
        return self._replace(**{name: getattr(self, name)[which] for name in columns})

    def of_use(self, site: str) -> np.ndarray:
        """(n,) uint64: the keys of these records and epochs for one use."""
        return hashed(_of_site(site), self.keys)

    def chances(self, site: str) -> np.ndarray:
        """(n,) in [0, 1): one draw of each record for one use."""
        return chances(self.of_use(site))


class Records(NamedTuple):
    """n records as a task's function gets them: their texts one after the other, each record's together."""

    texts: Texts
    counts: np.ndarray  # (n,) texts of each record
    draws: Draws


class Part(NamedTuple):
    """Examples that a task's function made, how their texts were mixed, and of which records they are."""

    laid: Laid
    records: np.ndarray  # (n,) numbers among the records that it got
    mixed: Sequence[tuple[Mixture, ...]] = ()  # of each example, where texts were mixed


Made = Sequence[Part]  # records that give no example are in no part


Room = Callable[[Sequence[np.ndarray], int, Sequence[str], TaskConfig], np.ndarray]
Make = Callable[[Records, Material, TaskConfig], Made]


@dataclass(frozen=True, slots=True)
class Task:
    """A row of the table."""

    name: str
    side: Literal["monolingual", "bilingual"]  # whose budget it spends
    # monolingual corpora; every text; pairs of translations; scored corpora
    reads: Literal["sentences", "texts", "pairs", "triplets"]
    # lengths of the segments [(n,), ...], longest document, languages, settings -> tokens to set aside (n,)
    room: Room
    make: Make

    @property
    def loss(self) -> Loss:
        """What its examples are trained with."""
        return LOSSES[self.name]


def room_of_text(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str], config: TaskConfig
) -> np.ndarray:
    """Tokens of a text's document."""
    return np.minimum(lengths[0] + SPECIALS, maximum)


def room_of_texts(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str], config: TaskConfig
) -> np.ndarray:
    """Tokens of a document for each text; a length below zero says that the record has no such text."""
    rooms = [np.where(length >= 0, np.minimum(length + SPECIALS, maximum), 0) for length in lengths]
    return np.sum(rooms, axis=0)


def wrapped(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """<s> ids </s>."""
    return np.concatenate([[tokenizer.bos_id], ids, [tokenizer.eos_id]]).astype(np.int32)


def ends_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids of <s> and </s>."""
    return tokenizer.bos_id, tokenizer.eos_id
