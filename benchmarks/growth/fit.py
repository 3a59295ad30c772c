"""What the measurements say: lines through series, and the machine's rates from the few points that are for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.growth.measure import Measured
from training.cost import Machine, Work


class Line(NamedTuple):
    """``intercept + slope * size``, and how much of the variance it explains."""

    intercept: float
    slope: float
    explained: float  # R squared


class Host(NamedTuple):
    """The machine that ranks share."""

    cores: int
    together: float = 1.0  # how many times as long a step takes a core when all others run one too


def line_through(sizes: Sequence[float], values: Sequence[float]) -> Line:
    """By least squares."""
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - intercept - slope * x
    return Line(float(intercept), float(slope), float(1 - rest.var() / y.var()))


def machine_of(measured: Sequence[Measured], host: Host) -> Machine:
    """The rates with which ``parts`` add up to the seconds of ``measured``, in the sense of least relative squares.

    No rate is negative. What no point has anything of, or what takes no time beside the rest, gets an infinite rate.
    Ranks are slower together, see ``crowding``.
    """
    from scipy.optimize import nnls

    rows = [
        [crowding(each, host) * amount for amount in _computed(each.work)] + [each.work.sent]
        for each in measured
    ]
    times = np.array([each.seconds for each in measured])
    costs, _ = nnls(np.array(rows) / times[:, None], np.ones(len(measured)))
    layers, head, attention, memory, call, message = (float(cost) for cost in costs)
    return Machine(_rate(layers), _rate(head), _rate(attention), _rate(memory), call, _rate(message))


def foretold(each: Measured, machine: Machine, host: Host) -> float:
    """Seconds of a step by the model: ranks that are more than cores take turns on them.

    What messages take is mostly waiting for the other side, and that is when another rank has its turn.
    """
    of_messages = machine.parts(each.work)["messages"]
    return (machine.seconds(each.work) - of_messages) * crowding(each, host) + of_messages


def crowding(each: Measured, host: Host) -> float:
    """How many times as long a rank computes as it would alone.

    Cores share caches, memory and, where two are threads of one, their units; beyond the cores ranks take turns.
    """
    ranks = each.point.ranks
    busy = min(1.0, (ranks - 1) / max(1, host.cores - 1))
    return (1 + (host.together - 1) * busy) * max(1.0, ranks / host.cores)


def _computed(work: Work) -> list[float]:
    return [work.layers, work.head, work.attention, work.moved + work.updated, work.calls]


def _rate(cost: float) -> float:
    return 1 / cost if cost > 0 else float("inf")
