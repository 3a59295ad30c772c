"""Streams of records of given lengths, and a planner over them with constant shares."""

import numpy as np

from data.index import Rule
from data.planner import Planner
from data.sampling import Part, Stream
from data.shares import Mix
from data.tasks import TASKS


def streams_of_lengths(lengths_by_stream, task="mmlm"):
    """Streams whose records have the given lengths."""
    streams = []
    for number, lengths in enumerate(lengths_by_stream):
        lengths = np.asarray(lengths, np.int32)
        part = Part(0, (Rule(0, 1, len(lengths)),), lengths, int(lengths.sum()))
        streams.append(Stream(f"{task}/l{number}", TASKS[task], (f"l{number}",), (part,)))
    return streams


def skewed(count, seed=0, longest=120):
    """Streams with very different sizes and lengths, and skewed shares."""
    random = np.random.default_rng(seed)
    streams = streams_of_lengths(
        [
            random.integers(1, random.integers(4, longest), size=random.integers(20, 2000))
            for _ in range(count)
        ]
    )
    shares = random.pareto(1.0, size=count) + 0.02
    return streams, shares / shares.sum()


def planner_of(streams, shares, **changes):
    sizes = {"step_tokens": 8192, "row_tokens": 512, "maximum_tokens": 128, "seed": 5} | changes
    return Planner(streams, constant(shares), **sizes)


def constant(shares):
    """The same shares at every step."""
    return lambda tokens, exhausted, decisions: Mix(0, 0.3, 0.3, np.asarray(shares))


def realised(plan, streams, noise=0.0, seed=0):
    """Tokens of a plan; with noise some records give fewer than was set aside for them."""
    tokens = plan.planned.copy()
    if noise:
        random = np.random.default_rng(seed + plan.step)
        tokens = (tokens * random.uniform(1 - noise, 1, size=len(tokens))).astype(np.int64)
    return tokens
