"""Calque: from the planner to PackedBatch, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data.contestants import request_of
from data.batch import PackedBatch
from data.recipe import parse_recipe, read_recipe
from data.tally import Tally
from training.build import maker_from, open_data, planner_of
from training.config import Recipe

# Texts come in the proportions of the store, as with the others, so that their lengths are distributed alike.
_SETTINGS = (
    "sampling={budgets: {bilingual: 1, monolingual: 1}, language_temperature: 1, pair_temperature: 1, pairs: en}",
    "batch={step_tokens: 524288, row_tokens: 4096, microbatch_tokens: 32768}",  # those of recipes/base.yaml
)


def batches(folder: Path, tasks: dict[str, Any]) -> Iterator[int]:
    """Tokens of each microbatch; the planner's time is in them, as the others' sampling is in theirs."""
    request = request_of(folder)
    wanted = [*_SETTINGS, f"tasks={tasks}"]
    recipe = parse_recipe(read_recipe(Path(request["recipe"]), wanted), Recipe)
    data = open_data(recipe)
    planner, maker = planner_of(recipe, data), maker_from(recipe, data)
    rows = recipe.batch.microbatch_tokens // recipe.batch.row_tokens
    step = 0
    while True:
        step += 1
        plan, tally = planner.plan(), np.zeros((len(data.streams), len(Tally)), np.int64)
        for first in range(0, planner.rows, rows):
            made = maker(plan.rows(first, first + rows), plan.shut)
            PackedBatch.from_arrays(made.arrays)
            tally += made.tally
            yield int(made.tally[:, Tally.TOKENS].sum())
        planner.feedback(step, tally[:, Tally.TOKENS])
