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


def rates_of(measured: Sequence[Measured], cores: int) -> tuple[Machine, Host]:
    """The rates with which ``parts`` add up to the seconds of ``measured``, in the sense of least relative squares.

    First of steps of one rank what is computed; then of steps of several how much slower they compute it together, see
    ``crowding``, and what messages take. No rate is negative. What no point has anything of, or what takes no time
    beside the rest, gets an infinite rate.
    """
    alone = [each for each in measured if each.point.ranks == 1]
    costs = _factors([_computed(each.work) for each in alone], [each.seconds for each in alone])
    layers, head, attention, memory, call = costs
    machine = Machine(_rate(layers), _rate(head), _rate(attention), _rate(memory), call)
    several = [each for each in measured if each.point.ranks > 1]
    computed = [foretold(each, machine, Host(cores)) for each in several]
    slower, message = _factors(
        [
            [seconds * _busy(each, cores), each.work.sent * _turns(each, cores)]
            for seconds, each in zip(computed, several, strict=True)
        ],
        [each.seconds - seconds for seconds, each in zip(computed, several, strict=True)],
        [each.seconds for each in several],
    )
    return machine._replace(network=_rate(message)), Host(cores, 1 + slower)


def _factors(
    rows: Sequence[Sequence[float]], sums: Sequence[float], sizes: Sequence[float] = ()
) -> list[float]:
    """Factors of the columns, none negative, with which ``rows`` add up to ``sums``, each in parts of its size."""
    from scipy.optimize import nnls

    table, wanted = np.array(rows, float), np.array(sums)
    size = np.array(sizes or sums)
    table, wanted = table / size[:, None], wanted / size
    scale = table.max(0)  # columns differ by powers of ten
    scale[scale == 0] = 1
    return [float(factor) for factor in nnls(table / scale, wanted)[0] / scale]


def foretold(each: Measured, machine: Machine, host: Host) -> float:
    """Seconds of a step by the model: ranks that are more than cores take turns on them.

    So they do with messages, which are copies by the cores where ranks share a machine: of the seconds of two and of
    four ranks on two cores nine in ten are processor time.
    """
    of_messages = machine.parts(each.work)["messages"]
    computed = machine.seconds(each.work) - of_messages
    return computed * crowding(each, host) + of_messages * _turns(each, host.cores)


def crowding(each: Measured, host: Host) -> float:
    """How many times as long a rank computes as it would alone.

    Cores share caches, memory and, where two are threads of one, their units; beyond the cores ranks take turns.
    """
    busy = _busy(each, host.cores)
    return (1 + (host.together - 1) * busy) * _turns(each, host.cores)


def _turns(each: Measured, cores: int) -> float:
    """How many ranks take turns on a core."""
    return max(1.0, each.point.ranks / cores)


def _busy(each: Measured, cores: int) -> float:
    """The part of the other cores that other ranks keep at work."""
    return min(1.0, (each.point.ranks - 1) / max(1, cores - 1))


def _computed(work: Work) -> list[float]:
    return [work.layers, work.head, work.attention, work.moved + work.updated, work.calls]


def _rate(cost: float) -> float:
    return 1 / cost if cost > 0 else float("inf")
