"""A hundred skewed streams of made-up lengths, and the course of who plans them: the planner, a blend by samples."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from data.index import Rule
from data.planner import Planner
from data.sampling import Part, Stream
from data.settings.tasks import TasksConfig
from data.shares import Shares
from data.stages import SamplingConfig
from data.tasks import TASKS

STREAMS: Final = 100
STEP_TOKENS: Final = 8192
_ROW = 512
_LONGEST = 128
# Of what is set aside for a stream, so much is really used: drawn for every step and stream.
_KEPT = (0.6, 1.0)

SETTINGS = {
    "constant": {},
    "annealed": {"language_temperature": {"start": 0.7, "end": 0.3, "tokens": STEP_TOKENS * 2000}},
    "stages": {
        "language_temperature": 0.7,
        "stages": [
            {"tokens": STEP_TOKENS * 700},
            {"tokens": STEP_TOKENS * 800, "language_temperature": 0.3},
            {"language_temperature": {"start": 0.3, "end": 0.0, "tokens": STEP_TOKENS * 1000}},
        ],
    },
}


class Course(NamedTuple):
    """What every step held and was due."""

    tokens: np.ndarray  # (steps, S)
    due: np.ndarray  # (steps, S), of the same sum

    def off(self, window: int | None = None) -> float:
        """The distance of the worst stream from its budget in the worst window, else over the run, in points."""
        ahead = np.vstack([np.zeros(self.due.shape[1]), np.cumsum(self.tokens - self.due, axis=0)])
        total = np.concatenate([[0.0], np.cumsum(self.tokens.sum(1))])
        steps = window or len(self.tokens)
        return float(
            100 * (np.abs(ahead[steps:] - ahead[:-steps]).max(1) / (total[steps:] - total[:-steps])).max()
        )


def skewed_streams(count: int = STREAMS, seed: int = 0, scale: int = 1) -> list[Stream]:
    """Streams of one text a record."""
    random = np.random.default_rng(seed)
    streams = []
    for number in range(count):
        size, mean = int(scale * 10 ** random.uniform(1.5, 4.5)), random.uniform(4, 90)
        lengths = (random.gamma(4.0, mean / 4, size) + 1).clip(1, _LONGEST - 2).astype(np.int32)
        part, language = Part(0, (Rule(0, 1, size),), lengths, int(lengths.sum())), f"l{number:03}"
        streams.append(Stream(f"mmlm/{language}", TASKS["mmlm"], (language,), (part,)))
    return streams


def planned(streams: list[Stream], sampling: SamplingConfig, steps: int) -> Course:
    """The course of the planner; a part of what it sets aside is never used, as in a run."""
    planner = Planner(
        streams,
        Shares(streams, TasksConfig.model_validate({"mmlm": {}}), sampling),
        step_tokens=STEP_TOKENS,
        row_tokens=_ROW,
        maximum_tokens=_LONGEST,
        seed=1,
    )
    random, tokens, due = np.random.default_rng(1), [], []
    for step in range(1, steps + 1):
        shares = planner.mix(step).shares
        plan = planner.plan()
        held = (plan.planned * random.uniform(*_KEPT, len(streams))).astype(np.int64)
        planner.feedback(step, held)
        tokens.append(held)
        due.append(shares * held.sum())
    return Course(np.array(tokens), np.array(due))


def blended(streams: list[Stream], sampling: SamplingConfig, steps: int) -> Course:
    """The course of a blend by samples: always the stream that is furthest behind its share of the samples."""
    shares_of = Shares(streams, TasksConfig.model_validate({"mmlm": {}}), sampling)
    rooms = [stream.room(np.arange(len(stream)), 0, 0, _LONGEST).tolist() for stream in streams]
    nothing = np.zeros(len(streams), bool)
    behind, drawn = np.zeros(len(streams)), [0] * len(streams)
    random, tokens, due, spent = np.random.default_rng(1), [], [], 0
    for _ in range(steps):
        shares = shares_of(spent, nothing, {}).shares
        step = np.zeros(len(streams), np.int64)
        filled = 0
        while filled < STEP_TOKENS:
            behind += shares
            number = int(behind.argmax())
            behind[number] -= 1
            room = rooms[number][drawn[number] % len(rooms[number])]
            drawn[number] += 1
            step[number] += room
            filled += room
        spent += filled
        held = (step * random.uniform(*_KEPT, len(streams))).astype(np.int64)
        tokens.append(held)
        due.append(shares * held.sum())
    return Course(np.array(tokens), np.array(due))
