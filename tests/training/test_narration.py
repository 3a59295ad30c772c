"""What a run says of itself before its first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.recipe import parse_recipe, read_recipe
from model.parallel.topology import Axis
from training.config import Recipe
from training.narration import Narration


@pytest.mark.parametrize(
    ("tensor", "here", "warned"), [(1, 3, False), (2, 4, False), (2, 1, False), (2, 3, True), (4, 2, True)]
)
def test_models_that_lie_on_several_machines_are_told(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch, tensor: int, here: int, warned: bool
) -> None:
    monkeypatch.setenv("LOCAL_SIZE", str(here))
    said: list[str] = []
    telemetry: Any = SimpleNamespace(say=said.append)
    engine: Any = SimpleNamespace(stage=3, accumulation=2)
    world: Any = SimpleNamespace(ranks=6, device=SimpleNamespace(type="cpu"), tensor=Axis(0, tensor))
    recipe = parse_recipe(read_recipe(small_recipe), Recipe)
    Narration(telemetry, recipe, Path("run")).introduce(10**6, 5, engine, world, None)
    shared = f"over 6 rank(s) of {tensor} tensor ranks each" if tensor > 1 else "over 6 rank(s) on"
    assert shared in said[0]
    assert any("over the network in every layer" in line for line in said) is warned


@pytest.mark.parametrize("taken", [{}, {"alignment": "streaming", "vocabulary": "torch"}])
def test_a_start_says_where_its_time_went_and_what_auto_took(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch, taken: dict[str, str]
) -> None:
    monkeypatch.setattr("training.narration.taken_by_auto", lambda: taken)
    seconds = {"launcher": 4.01, "imports": 3.0, "first batch": 0.01, "first step": 2.5}
    start: Any = SimpleNamespace(seconds=seconds, busy={"imports": 2.5}, total=9.52)
    said: list[str] = []
    events: list[tuple[str, dict[str, Any]]] = []
    telemetry: Any = SimpleNamespace(say=said.append, event=lambda name, **of: events.append((name, of)))
    recipe = parse_recipe(read_recipe(small_recipe), Recipe)
    Narration(telemetry, recipe, Path("run")).started(7, start)
    assert events == [("start_up", {"step": 7, "seconds": seconds, "busy": {"imports": 2.5}, "total": 9.52})]
    # What took no time is not said.
    assert said[0] == "9.5 s from the launch to the end of step 7: launcher 4.0, imports 3.0, first step 2.5"
    assert said[1:] == (
        ["implementations that auto took: alignment streaming, vocabulary torch"] if taken else []
    )
