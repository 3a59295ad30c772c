"""training.figures: what is drawn of a long curve, and that nothing is drawn of nothing."""

from __future__ import annotations

import math

import pytest

from training.figures import POINTS, _smoothed, _thinned, curves, share_bars


def test_long_curves_are_thinned_to_the_first_and_last_and_evenly_between():
    points = [(step, float(step)) for step in range(10 * POINTS + 7)]
    thin = _thinned(points)
    assert len(thin) <= POINTS + 1 and thin[0] == points[0] and thin[-1] == points[-1]
    assert {b[0] - a[0] for a, b in zip(thin[:-2], thin[1:-1], strict=True)} == {11}
    assert _thinned(points[:5]) == points[:5]


def test_smoothing_keeps_a_constant_from_the_first_step_on():
    assert _smoothed([2.0] * 40) == pytest.approx([2.0] * 40)


def test_nothing_to_draw_is_no_figure():
    assert curves("x", {}) == "" and curves("x", {"a": []}) == "" and share_bars("x", {}, []) == ""


def test_a_share_without_a_budget_is_drawn():
    assert share_bars("x", {"share/a": 0.5, "budget/a": math.nan}, ["a"]) == share_bars(
        "x", {"share/a": 0.5}, ["a"]
    )
