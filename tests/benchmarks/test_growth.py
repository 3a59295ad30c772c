"""The benchmark of growth: lines and rates are those that measurements were made of, and the page says them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.growth.fit import Host, crowding, foretold, line_through, rates_of
from benchmarks.growth.measure import Measured
from benchmarks.growth.points import BASE, CALIBRATION, SERIES, Point, all_points, size_of
from benchmarks.growth.report import Growth, write
from training.activation_sizes import Contents
from training.cost import Machine, Work

TRUE = Machine(layers=9e10, head=4e10, attention=2e10, memory=5e9, call=8e-5, network=1e8)


def measured(point: Point, seconds: float = 1.0) -> Measured:
    """A point whose work grows with its sizes in ways of its own, so that rates can be told apart."""
    problem, ranks = point.problem, point.ranks
    tokens, longest = problem.tokens // ranks, problem.texts.longest
    work = Work(
        layers=6.0 * tokens * problem.layers * 3e5,
        head=6.0 * tokens / 9 * problem.vocabulary * 192,
        attention=12.0 * tokens * longest * 192 * problem.layers,
        moved=4.0 * tokens * problem.layers * 1e4,
        updated=16.0 * problem.vocabulary * 192,
        calls=400.0 + 90 * problem.layers,
        sent=0.0 if ranks == 1 else 1e7,
    )
    contents = Contents(tokens, tokens, tokens // 9, 0, 0, 0, squares=tokens * longest)
    return Measured(point, seconds, seconds * ranks, int(work.moved + work.updated), contents, work, 2**20)


HOST = Host(2, together=1.25)


def timed(point: Point, machine: Machine, host: Host = HOST) -> Measured:
    one = measured(point)
    return one._replace(seconds=foretold(one, machine, host))


def test_a_line_is_found_and_how_much_it_explains() -> None:
    found = line_through([1.0, 2.0, 4.0], [5.0, 7.0, 11.0])
    np.testing.assert_allclose(found, (3, 2, 1))
    assert 0 < line_through([1, 2, 3, 4], [1, 3, 2, 4]).explained < 1


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_the_rates_are_those_that_the_seconds_were_made_of(cores: int) -> None:
    there = Host(cores, together=1.25)
    found, host = rates_of([timed(point, TRUE, there) for point in CALIBRATION], cores)
    for point in all_points():
        each = timed(point, TRUE, there)
        assert foretold(each, found, host) == pytest.approx(each.seconds, rel=1e-6)
    assert host.cores == cores and host.together == pytest.approx(1.25, rel=1e-3)
    assert found.layers == pytest.approx(TRUE.layers, rel=1e-3)
    assert found.network == pytest.approx(TRUE.network, rel=1e-3)


def test_what_takes_no_time_gets_no_rate_and_none_is_negative() -> None:
    free = TRUE._replace(attention=float("inf"))
    noise = np.random.default_rng(0)
    points = [timed(point, free) for point in CALIBRATION]
    found, host = rates_of(
        [each._replace(seconds=each.seconds * noise.uniform(0.9, 1.1)) for each in points], 2
    )
    assert host.together >= 1
    assert min(found.layers, found.head, found.attention, found.memory, found.network) > 0 and found.call >= 0


def test_ranks_beyond_the_cores_take_turns_with_what_they_compute_and_copy() -> None:
    one, four = measured(Point(BASE.problem, 2)), measured(Point(BASE.problem, 4))
    assert (crowding(one, Host(2)), crowding(four, Host(2))) == (1, 2)
    assert (crowding(one, HOST), crowding(four, HOST)) == (1.25, 2.5)
    alone = measured(BASE)
    assert crowding(alone, HOST) == 1 and crowding(one, Host(5, 2.0)) == 1.25 and crowding(four, Host(1)) == 4
    silent = four._replace(work=four.work._replace(sent=0.0))
    copied = 2 * four.work.sent / TRUE.network
    assert foretold(silent, TRUE, Host(2)) == pytest.approx(2 * TRUE.seconds(silent.work))
    assert foretold(four, TRUE, Host(4)) == pytest.approx(TRUE.seconds(four.work))
    assert foretold(four, TRUE, Host(2)) == pytest.approx(foretold(silent, TRUE, Host(2)) + copied)


def test_the_page_has_every_point_the_model_s_errors_and_a_plot(tmp_path: Path) -> None:
    points = [timed(point, TRUE) for point in all_points()]
    rates, _ = rates_of([each for each in points if each.point in CALIBRATION], 2)
    wrong = next(each for each in points if each.point not in CALIBRATION)
    points[points.index(wrong)] = wrong._replace(seconds=wrong.seconds / 1.5)
    text = write(Growth(points, rates, HOST, "a machine", ["a cluster"]), tmp_path / "growth", "the command")
    assert text == (tmp_path / "growth.md").read_text() and "the command" in text and "a cluster" in text
    for title, of_series in SERIES.items():
        assert f"## {title}" in text
        for point in of_series:
            assert f"| {size_of(title, point):,}{' *' * (point in CALIBRATION)} |" in text
    assert (
        "+50 %" in text and "off by 50 % at most and 0 % in the median; 1 of them by more than 20 %" in text
    )
    values = json.loads((tmp_path / "growth.json").read_text())
    assert len(values["points"]) == len(points)
    assert (tmp_path / "growth.svg").read_text().count('<g id="axes_') == len(SERIES)
