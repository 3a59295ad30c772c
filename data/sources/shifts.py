"""The alignment guard: a parallel file in which a line is missing or too many, so that all after it stand beside
the wrong ones, is told by its text.

Each line is compared with the line beside it and with the three before that, by length and by what both sides share:
numbers, signs, placeholders, and words that begin alike, the rarer the more. The difference of the two scores is added
up along the file from wherever it was last below zero (the CUSUM of Page, 1954). Beside its own translation a line
loses about two and a half a line, so the sum stays near zero; after a shift it grows as fast.

A shift lasts to the end of the file, or to the next, so of a long file its beginning is looked at whole and then a
part of every stretch: a shift that is undone within a stretch may be missed there. Nor are shifts by more than three
lines at once looked for.
"""

from __future__ import annotations

import math
import unicodedata
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import regex

from data.config import CorpusConfig
from data.lengths import letters_of
from data.lines import decoded_lines
from data.recipe import UserError
from data.sources.places import side_by_side

ALARM = 16.0
DRIFT = 0.75  # taken off every line, so that text which fits nowhere does not add up
REACH = 3  # lines that may be missing, or too many, at one place
MOST = 4.0  # what one line can say
WHOLE = 200_000  # lines at the beginning of a file, all of which are looked at
STRETCH, LOOKED_AT = 5_000, 250  # of each later stretch these many lines
_SHIFTS = (*range(-REACH, 0), *range(1, REACH + 1))
_BUCKETS = 1 << 16
_WORDS = regex.compile(r"[\p{L}\p{M}]+|\p{N}+|[^\p{L}\p{M}\p{N}\s]")
_LONGEST = 400  # characters of a line that are looked at


class Shift(NamedTuple):
    """Where a shift begins, and how many lines the second side lacks there (below zero) or has too many."""

    line: int  # about, counted from 1; in a long file perhaps before it
    lines: int
    seen: int  # lines from there to where it was certain
    after: int  # the line up to which all was well


class _Line(NamedTuple):
    length: float
    marks: frozenset[int]


class _Scores:
    """How well two lines go together, by what was seen of the file so far."""

    def __init__(self) -> None:
        self._lengths = [100.0, 100.0]  # of both sides in all: their ratio does not know of shifts
        self._seen = 0
        self._counts = [[0] * _BUCKETS, [0] * _BUCKETS]

    def line(self, text: str, side: int) -> _Line:
        """What is looked at of a line, counted."""
        text = text[:_LONGEST]
        length = letters_of(text) + 6
        plain = text.lower() if text.isascii() else unicodedata.normalize("NFKD", text.lower())
        words = {word[:4] for word in _WORDS.findall(plain) if len(word) > 2 or not word[0].isalpha()}
        marks = frozenset(zlib.crc32(word.encode("utf-8", "replace")) % _BUCKETS for word in words)
        for mark in marks:
            self._counts[side][mark] += 1
        self._lengths[side] += length
        self._seen += side
        return _Line(math.log(length), marks)

    def of(self, first: _Line, second: _Line) -> tuple[float, float]:
        """(by length, by what is shared); more is better."""
        usual = math.log(self._lengths[1] / self._lengths[0])
        one, other = self._counts
        shared = 0.0
        for mark in first.marks & second.marks:
            shared += math.log((self._seen + 20) / (max(one[mark], other[mark]) + 1))
        return -abs(second.length - first.length - usual) / 0.3, min(shared, 12.0)


def find_shift(rows: Iterable[tuple[str, str]]) -> Shift | None:
    """The first shift in texts that stand side by side, if there is any. Memory does not grow with them."""
    scores = _Scores()
    before: deque[tuple[_Line, _Line]] = deque(maxlen=REACH)  # the last one first
    sums, starts = dict.fromkeys(_SHIFTS, 0.0), dict.fromkeys(_SHIFTS, 1)
    begin = 1  # of the stretch
    well = 0  # the line up to which all was well, of those before this stretch
    for number, (first, second) in enumerate(rows, start=1):
        if number > WHOLE and number % STRETCH >= LOOKED_AT:
            if before:
                well, sums = number - 1, dict.fromkeys(_SHIFTS, 0.0)
                before.clear()
            continue
        if not first.strip() or not second.strip():
            continue
        if not before:
            starts, begin = dict.fromkeys(_SHIFTS, number), number
        here = scores.line(first, 0), scores.line(second, 1)
        length, shared = scores.of(*here)
        for distance, (one, other) in enumerate(before, start=1):
            # A line before on the second side fits this one (it lacks lines), or this one on the second side a line
            # before (it has too many).
            for lines, pair in ((-distance, (here[0], other)), (distance, (one, here[1]))):
                other_length, other_shared = scores.of(*pair)
                gain = _bounded(other_length - length) + 0.5 * _bounded(other_shared - shared, 1.5 * MOST)
                sums[lines] = max(0.0, sums[lines] + _bounded(gain) - DRIFT)
                if not sums[lines]:
                    starts[lines] = number + 1
                elif sums[lines] > ALARM:
                    line = starts[lines]
                    after = well if line <= begin + REACH and well else line - 1
                    return Shift(line, lines, number - line + 1, after)
        before.appendleft(here)
    return None


def check_alignment(config: CorpusConfig, key: str) -> None:
    """UserError if the lines of parallel text files slide apart; ``key`` is the corpus' own in the recipe."""
    if config.format != "text" or config.kind != "parallel":
        return
    for _, paths in side_by_side(config):
        first, *others = paths.values()
        for other in others:
            found = find_shift(zip(_texts(first), _texts(other), strict=True))
            if found is not None:
                where = f"at about line {found.line}"
                if found.after < found.line - 1:
                    where = f"between the lines {found.after} and {found.line}"
                count = f"{abs(found.lines)} line{'s' * (abs(found.lines) > 1)}"
                what = f"lacks {count}" if found.lines < 0 else f"has {count} too many"
                raise UserError(
                    f"{key}: {first} and {other} slide apart {where}: there the second file {what}"
                    f" ({found.seen} lines fit better when moved by as many). Mend the files; if they are right as they"
                    " are, set cleaning.alignment: off for this corpus"
                )


def _texts(path: str) -> Iterator[str]:
    return (text for _, _, text, _ in decoded_lines(path, lambda count: None))


def _bounded(value: float, most: float = MOST) -> float:
    return max(-most, min(most, value))
