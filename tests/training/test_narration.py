"""What a run says of itself before its first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.recipe import parse_recipe, read_recipe
from model.parallel.topology import Axis
from training import narration
from training.config import Recipe
from training.narration import Narration
from training.start_up import StartUp


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


def test_a_start_says_where_its_time_went(small_recipe: Path) -> None:
    start = StartUp()
    for part in ("imports", "build", "first step", "build"):
        start.ends(part)
    said: list[str] = []
    events: list[tuple[str, dict[str, Any]]] = []
    telemetry: Any = SimpleNamespace(say=said.append, event=lambda name, **of: events.append((name, of)))
    recipe = parse_recipe(read_recipe(small_recipe), Recipe)
    Narration(telemetry, recipe, Path("run")).started(7, start)
    ((name, details),) = events
    assert name == "start_up" and details["step"] == 7
    assert list(details["seconds"]) == ["launcher", "imports", "build", "first step"]
    assert sum(details["seconds"].values()) == pytest.approx(details["total"], abs=0.05)
    assert said == [
        f"{start.total:.1f} s from the launch to the end of step 7: imports {start.seconds['imports']:.1f}"
    ]


@pytest.mark.parametrize(
    ("precision", "able", "warned"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_bf16_on_a_processor_without_it_is_told(
    small_recipe: Path, monkeypatch: pytest.MonkeyPatch, precision: str, able: bool, warned: bool
) -> None:
    monkeypatch.setattr(narration, "has_bf16", lambda: able)
    monkeypatch.setenv("LOCAL_SIZE", "1")
    said: list[str] = []
    telemetry: Any = SimpleNamespace(say=said.append)
    engine: Any = SimpleNamespace(stage=3, accumulation=2)
    world: Any = SimpleNamespace(ranks=1, device=SimpleNamespace(type="cpu"), tensor=Axis(0, 1))
    recipe = parse_recipe(read_recipe(small_recipe, [f"precision={precision}"]), Recipe)
    Narration(telemetry, recipe, Path("run")).introduce(10**6, 5, engine, world, None)
    assert any("--set precision=fp32" in line for line in said) == warned
