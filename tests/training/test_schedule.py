"""The learning rate is a function of the step: warm-up, decay, the floor after the last step."""

from __future__ import annotations

import math

import pytest

from training.config import OptimizerConfig
from training.schedule import learning_rate

RATE = 2.0

# schedule, warmup_steps, final_fraction, {step of 9: part of the rate}; the decay ends where a tenth step would be
TABLE = [
    ("linear", 0, 0.0, {1: 0.9, 5: 0.5, 9: 0.1}),
    ("linear", 4, 0.0, {1: 0.25, 2: 0.5, 4: 1.0, 5: 5 / 6, 7: 0.5, 9: 1 / 6}),
    ("linear", 4, 0.1, {1: 0.25, 4: 1.0, 7: 0.55, 9: 0.25}),
    ("cosine", 0, 0.0, {5: 0.5}),
    ("cosine", 4, 0.0, {4: 1.0, 6: 0.75, 7: 0.5, 8: 0.25}),
    ("cosine", 4, 0.2, {7: 0.6}),
    ("constant", 4, 0.0, {1: 0.25, 4: 1.0, 5: 1.0, 9: 1.0}),
    ("constant", 9, 0.0, {3: 1 / 3, 9: 1.0}),
    ("linear", 9, 0.0, {1: 1 / 9, 9: 1.0}),
]


@pytest.mark.parametrize(("schedule", "warmup", "final", "parts"), TABLE)
def test_table(schedule: str, warmup: int, final: float, parts: dict[int, float]) -> None:
    config = OptimizerConfig.model_validate(
        {"learning_rate": RATE, "schedule": schedule, "warmup_steps": warmup, "final_fraction": final}
    )
    for step, part in parts.items():
        assert learning_rate(step, 9, config) == pytest.approx(RATE * part, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_rises_to_the_rate_and_never_rises_again(schedule: str) -> None:
    config = OptimizerConfig.model_validate(
        {"learning_rate": RATE, "schedule": schedule, "warmup_steps": 30, "final_fraction": 0.05}
    )
    rates = [learning_rate(step, 300, config) for step in range(1, 301)]
    assert max(rates) == rates[29] == RATE
    assert math.isclose(learning_rate(301, 300, config), 0.05 * RATE) and rates[-1] > 0.05 * RATE
    assert rates[:30] == sorted(rates[:30]) and rates[29:] == sorted(rates[29:], reverse=True)
