"""Command: write golden_losses.json, the loss curve of the small recipe that guards changes of the code.

python -m tests.training.golden
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from data.preparation import prepare
from data.recipe import parse_recipe, read_recipe
from tests.small_run import write_small_recipe
from tests.training.runs import WITHOUT_EVALUATION, numbers, train
from training.config import Recipe

GOLDEN = Path(__file__).with_name("golden_losses.json")


def golden_losses(recipe: Path, runs: Path) -> list[dict[str, float]]:
    """Total loss and loss of every task at six steps in float32, one process."""
    train(recipe, runs, WITHOUT_EVALUATION)
    steps = numbers(runs / "small")
    return [
        {name: value for name, value in step.items() if name.split("/")[0] == "loss" and name.count("/") < 2}
        for step in steps
    ]


def read_golden() -> list[dict[str, float]]:
    """What was written."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        path = write_small_recipe(Path(name))
        prepare(parse_recipe(read_recipe(path), Recipe), workers=1)
        GOLDEN.write_text(
            json.dumps(golden_losses(path, Path(name) / "runs"), indent=1) + "\n", encoding="utf-8"
        )
    print(GOLDEN)
