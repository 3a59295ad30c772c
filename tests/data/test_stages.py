"""The sampling section: what holds at which token, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.stages import SamplingConfig

exponents = st.floats(0, 1)


def sampling(**settings: Any) -> SamplingConfig:
    return SamplingConfig.model_validate(settings)


@given(start=exponents, end=exponents, tokens=st.integers(1, 10**15), further=st.integers(0, 10**15))
def test_an_annealed_temperature_is_exact_at_its_ends_and_stays_there(
    start: float, end: float, tokens: int, further: int
) -> None:
    found = sampling(language_temperature={"start": start, "end": end, "tokens": tokens})
    assert found.at(0).language_temperature == start
    assert found.at(tokens + further).language_temperature == end
    low, high = sorted((start, end))
    assert low <= found.at(tokens // 2).language_temperature <= high
    assert found.at(tokens // 2).pair_temperature == 0.3


@given(
    st.lists(st.tuples(st.integers(0, 10**12), exponents), min_size=1, max_size=5, unique_by=lambda p: p[0])
)
def test_points_are_met_exactly_with_straight_lines_between(points: list[tuple[int, float]]) -> None:
    points = sorted(points)
    found = sampling(pair_temperature=[list(point) for point in points])
    for tokens, value in points:
        assert found.at(tokens).pair_temperature == pytest.approx(value, abs=1e-12)
    assert found.at(points[0][0] // 2).pair_temperature == pytest.approx(points[0][1], abs=1e-12)


def test_a_line_passes_through_its_middle() -> None:
    found = sampling(language_temperature={"start": 0.7, "end": 0.3, "tokens": 1000})
    assert found.at(250).language_temperature == pytest.approx(0.6)


def test_stages_say_what_changes_and_keep_the_rest() -> None:
    found = sampling(
        language_temperature=0.7,
        stages=[
            {"tokens": 100, "budgets": {"bilingual": 0, "monolingual": 1}},
            {"tokens": 50, "budgets": {"bilingual": 2}, "weights": {"tlm": 3}, "language_floor": {"de": 0.2}},
            {"language_temperature": {"start": 0.5, "end": 0.3, "tokens": 10}, "weights": {"camlm": 0}},
        ],
    )
    assert found.begins() == [0, 100, 150]
    first, second, third = found.at(99), found.at(100), found.at(155)
    assert (first.stage, second.stage, third.stage) == (0, 1, 2)
    assert first.budgets.bilingual == 0 and second.budgets.bilingual == third.budgets.bilingual == 2
    assert (first.weights, second.weights, third.weights) == ({}, {"tlm": 3}, {"tlm": 3, "camlm": 0})
    assert (first.floor, second.floor, third.floor) == (0, {"de": 0.2}, {"de": 0.2})
    assert second.language_temperature == 0.7
    assert third.language_temperature == pytest.approx(0.4)  # its points count from the start of the stage
    assert found.at(10**12).stage == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"language_temperature": 1.5}, "less than or equal to 1"),
        ({"language_temperature": {"start": 0.5, "tokens": 5}}, "required"),
        ({"pair_temperature": [[5, 0.3], [5, 0.4]]}, "in the order of their tokens"),
        ({"pair_temperature": []}, "at least 1 item"),
        ({"language_floor": {"de": 0.6, "fr": 0.5}}, "add up to 1.1, above 1"),
        ({"maximum_epochs": 0}, "greater than or equal to 1"),
        ({"budgets": {"bilingual": 0, "monolingual": 0}}, "both budgets are 0"),
        ({"stages": [{"weights": {"tlm": 1}}, {}]}, "stage 1 of 2 needs tokens"),
        ({"stages": [{"tokens": 5}]}, "leave out its tokens"),
        ({"stages": [{"tokens": 5, "language_floor": {"a": 1, "b": 1}}, {}]}, "add up to 2, above 1"),
    ],
)
def test_what_can_not_be_meant_is_refused_once(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        sampling(**settings)
    assert said in str(error.value) and error.value.error_count() == 1


def test_it_reads_back_what_it_wrote() -> None:
    found = sampling(
        language_temperature=[[0, 0.7], [1e9, 0.3]],
        language_floor={"de": 0.1},
        maximum_epochs={"news": 3},
        stages=[{"tokens": 1e6, "pair_temperature": {"start": 1, "end": 0, "tokens": 7}}, {}],
    )
    assert SamplingConfig.model_validate(found.model_dump(mode="json")) == found
    assert found.cap("news") == 3 and found.cap("web") is None and sampling(maximum_epochs=2).cap("web") == 2
