"""The learning rate of a step: a function of the step alone, so nothing of it has to be saved."""

from __future__ import annotations

import math

from training.config import OptimizerConfig


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then linear, cosine or no decay to ``final_fraction``; ``step`` counts from 1 to ``steps``.

    The decay would reach its end one step after the last: a step at rate 0 would be wasted.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / (steps + 1 - config.warmup_steps)
    if config.schedule == "linear":
        left = 1.0 - done
    elif config.schedule == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    else:
        left = 1.0
    return config.learning_rate * (config.final_fraction + (1.0 - config.final_fraction) * left)
