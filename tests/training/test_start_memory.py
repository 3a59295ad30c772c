"""Under ZeRO-3 no rank ever holds the model that it starts from: measured in the ranks, and the weights compared."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.recipe import parse_recipe, read_recipe
from model.config import EncoderConfig
from model.huggingface import write_folder
from model.pretraining import PretrainingModel
from tests.ranks import run_on_ranks
from tests.training.runs import WITHOUT_EVALUATION, launched, save_weights, saved_weights, sharding, store_of
from training.build import build_model, open_data
from training.config import Recipe
from training.engine import Engine, join_world, sharder
from training.optimizer import build_optimizer
from training.sharding import resolve_sharding

MB = 2**20
SMALL = EncoderConfig(vocabulary_size=2003, layers=2, width=32, heads=4, feed_forward=64, positions=66)
LARGE = EncoderConfig(vocabulary_size=20_000, layers=14, width=768, heads=12, feed_forward=3072, positions=66)


def exported(config: EncoderConfig, recipe: Path, folder: Path) -> PretrainingModel:
    model = PretrainingModel(config, seed=5)
    tokenizer = store_of(recipe).tokenizer_folder
    write_folder(model.state_dict(), config, folder, tokenizer_folder=tokenizer, maximum_tokens=64)
    return model


def started(path: Path, folder: Path, tensor: int = 1) -> Recipe:
    settings = [WITHOUT_EVALUATION, f"model={{start_from: {folder}}}", f"parallel.tensor={tensor}"]
    return parse_recipe(read_recipe(path, settings), Recipe)


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "tensor"), [(2, 1), (4, 2)])
def test_the_shards_are_those_of_the_folder(
    small_recipe: Path, tmp_path: Path, ranks: int, tensor: int
) -> None:
    truth = exported(SMALL, small_recipe, tmp_path / "model")
    recipe = started(small_recipe, tmp_path / "model", tensor)

    def of_rank(group: Any) -> list[int]:
        launched()
        world = join_world(tensor)
        resolved = resolve_sharding(sharding(3), Path("ds"), recipe, Path("r"), world.ranks)
        held: list[int] = []
        shard = sharder(resolved, world)
        assert shard is not None

        def settle(parameter: nn.Parameter) -> None:
            shard(parameter)
            held.append(parameter.numel())

        model, fresh = build_model(recipe, open_data(recipe), nn.LayerNorm, world.tensor, settle)
        assert fresh == []
        optimizer = build_optimizer(model.named_parameters(), recipe.optimizer, world.device)
        whole = build_optimizer(truth.named_parameters(), recipe.optimizer, world.device)
        assert [len(group["params"]) for group in optimizer.param_groups] == [
            len(group["params"]) for group in whole.param_groups
        ]
        save_weights(Engine(model, optimizer, resolved, world), tmp_path / "saved")
        return held

    for held in run_on_ranks(of_rank, ranks):
        assert not any(held)  # nothing of a parameter is left with it once it is sharded
    found = saved_weights(tmp_path / "saved")
    for name, parameter in truth.named_parameters():
        assert name.startswith("temperature") or torch.equal(found[name], parameter), name


@pytest.mark.slow
@pytest.mark.ranks
def test_no_rank_holds_the_whole(small_recipe: Path, tmp_path: Path) -> None:
    sizes = [p.numel() * 4 / MB for p in exported(LARGE, small_recipe, tmp_path / "model").parameters()]
    recipe = started(small_recipe, tmp_path / "model")

    def of_rank(group: Any, sharded: bool) -> float:
        launched()
        world = join_world()
        data = open_data(recipe)
        resolved = resolve_sharding(sharding(3), Path("ds"), recipe, Path("r"), world.ranks)
        settle = sharder(resolved, world) if sharded else None
        gc.collect()
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        build_model(recipe, data, nn.LayerNorm, world.tensor, settle)
        return memory("VmHWM") - before

    whole, largest = sum(sizes), max(sizes)
    assert whole > 400
    for peak in run_on_ranks(of_rank, 2, True, timeout=300):
        print(f"peak {peak:.0f} MB, model {whole:.0f}, largest {largest:.0f}")
        assert peak < whole / 2 + 3 * largest
    for peak in run_on_ranks(of_rank, 2, False, timeout=300):
        assert peak > whole  # what is measured is really there


def memory(what: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(what)
