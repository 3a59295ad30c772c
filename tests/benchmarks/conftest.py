"""A plan of three variants, in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.small_plan import PLAN_TEXT


@pytest.fixture
def plan_file(small_recipe: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN_TEXT.format(recipe=small_recipe))
    return path
