"""The planner's law over a hundred skewed streams; and that the benchmark can tell when it is broken."""

import numpy as np
import pytest

from benchmarks.planner import WINDOW
from benchmarks.planner.courses import SETTINGS, STREAMS, Course, blended, planned, skewed_streams
from data.stages import SamplingConfig


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_tokens_of_100_skewed_streams_follow_their_budgets_in_every_window_and_over_the_run(setting):
    streams, sampling = skewed_streams(), SamplingConfig.model_validate(SETTINGS[setting])
    assert len(streams) == STREAMS == 100
    course = planned(streams, sampling, 2500)
    assert course.off(WINDOW) < 0.1 and course.off() < 0.01
    assert blended(streams, sampling, WINDOW).off() > 0.1


def test_the_distance_is_that_of_the_worst_stream_in_the_worst_window():
    due = np.full((4, 2), 50.0)
    tokens = np.array([[50, 50], [60, 40], [40, 60], [50, 50]])
    course = Course(tokens, due)
    assert course.off() == 0 and course.off(2) == pytest.approx(5) and course.off(1) == pytest.approx(10)
    assert Course(due, due).off(1) == 0


def test_a_blend_by_samples_gives_long_records_too_much():
    streams = skewed_streams(10)
    sampling = SamplingConfig()
    assert blended(streams, sampling, 60).off() > 10 * planned(streams, sampling, 60).off()
