"""What is measured: series of steps in which one size grows, and the few that the machine's rates are taken from."""

from __future__ import annotations

from typing import Final, NamedTuple

from benchmarks.step.problem import Problem, Texts

TASKS: Final = ("mmlm", "tlm", "camlm")
_LONG: Final = Texts("long", ids=4096, every=8)


class Point(NamedTuple):
    """A step as so many ranks run it, each with one thread."""

    problem: Problem
    ranks: int = 1


BASE: Final = Point(
    Problem(
        tasks=TASKS,
        texts=Texts(ids=4096, every=8),
        tokens=2048,
        layers=4,
        width=192,
        heads=3,
        feed_forward=768,
        vocabulary=4096,
    )
)


def _grown(**sizes: int) -> Point:
    return Point(BASE.problem._replace(**sizes))  # type: ignore[arg-type]


# title -> points, the axis growing
SERIES: Final[dict[str, list[Point]]] = {
    "tokens of a microbatch": [_grown(tokens=tokens) for tokens in (512, 1024, 2048, 4096, 8192)],
    "tokens of a document, at most": [
        Point(BASE.problem._replace(texts=_LONG._replace(cut=cut))) for cut in (32, 64, 128, 256, 512)
    ],
    "vocabulary": [_grown(vocabulary=vocabulary) for vocabulary in (4096, 16_384, 65_536, 250_002)],
    "layers": [_grown(layers=layers) for layers in (2, 4, 8, 12)],
    "ranks": [Point(BASE.problem._replace(tokens=4096), ranks) for ranks in (1, 2, 4)],
}
# The corners; and for messages, and for how ranks compute beside each other, two steps of two ranks.
CALIBRATION: Final = (
    _grown(tokens=512),
    _grown(tokens=8192),
    _grown(layers=8),
    _grown(vocabulary=65_536),
    Point(BASE.problem._replace(texts=_LONG._replace(cut=512))),
    Point(BASE.problem._replace(tokens=512), ranks=2),
    Point(BASE.problem._replace(tokens=8192), ranks=2),
)


def size_of(title: str, point: Point) -> int:
    """Where the point stands on the axis of its series."""
    problem = point.problem
    return {
        "tokens of a microbatch": problem.tokens,
        "tokens of a document, at most": problem.texts.longest,
        "vocabulary": problem.vocabulary,
        "layers": problem.layers,
        "ranks": point.ranks,
    }[title]


def all_points() -> list[Point]:
    """Each once, fewest ranks first."""
    every = [*CALIBRATION, *(point for series in SERIES.values() for point in series)]
    return sorted(dict.fromkeys(every), key=lambda point: point.ranks)
