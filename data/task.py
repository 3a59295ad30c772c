"""What a task is: a row of the table, the material that its function draws on, and what it makes of a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from data.keys import generator
from data.lexicon import Lexicon
from data.mixing import Mixture
from data.packing import FIRST_POSITION, Document, Example
from data.recipe import Section
from data.tokenizer import Tokenizer

SPECIALS = 2  # <s> and </s> of a text


class TaskConfig(Section):
    """What every task has: its part of its side's tokens, and the factor of its loss."""

    weight: float = Field(1.0, gt=0)
    loss_weight: float = Field(1.0, ge=0)

    def lacks(self, lexicon: Lexicon | None) -> str | None:
        """What is missing for the task, with the remedy; None if nothing is."""
        return None

    def serves(self, lexicon: Lexicon | None, languages: tuple[str, ...], kind: str) -> bool:
        """Whether texts of these languages in a corpus of this kind can become examples at all."""
        return True


class TextSegment(NamedTuple):
    """One text of a record as the store holds it."""

    language: int  # number of the language
    ids: np.ndarray  # (n,) int32, without special tokens
    text: str
    group: int  # equal for the same sentence and for translations of one sentence
    score: float = math.nan  # the teacher's, against the anchor of the triplet that the text stands in
    teacher: np.ndarray | None = None  # (Et,) the teacher's vector, where the recipe asks for one


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


class Made(NamedTuple):
    """An example, or None where the record gives none; and how its texts were mixed, where they were."""

    example: Example | None
    mixed: tuple[Mixture, ...] = ()


Room = Callable[[Sequence[np.ndarray], int, Sequence[str], "TaskConfig"], np.ndarray]
Make = Callable[[Sequence[TextSegment], Draw, Material, "TaskConfig"], Made]


@dataclass(frozen=True, slots=True)
class Task:
    """A row of the table."""

    name: str
    side: Literal["monolingual", "bilingual"]  # whose budget it spends
    # monolingual corpora; every text; pairs of translations; scored corpora
    reads: Literal["sentences", "texts", "pairs", "triplets"]
    loss: Literal["masked", "alignment", "margin"]
    # lengths of the segments [(n,), ...], longest document, languages, settings -> tokens to set aside (n,)
    room: Room
    make: Make
    with_row: bool = False  # it gets the other texts of the record's row too, after those that it reads


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


_NOTHING = np.empty(0, dtype=np.int64)


def context_document(
    ids: np.ndarray,
    language: int | np.ndarray,
    predicted: np.ndarray = _NOTHING,
    targets: np.ndarray = _NOTHING,
    teacher: np.ndarray | None = None,
) -> Document:
    """A document in which every token sees every token; ``teacher`` is the teacher's vector of its text."""
    positions = np.arange(len(ids)) + FIRST_POSITION
    return Document(ids, positions, language, len(ids), predicted, targets, teacher)
