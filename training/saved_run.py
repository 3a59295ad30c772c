"""Models that were saved: a run or a checkpoint of it in one process, or a Hugging Face folder, with its recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from data.recipe import RawRecipe, UserError, parse_recipe, read_recipe
from data.store import TokenStore
from model.config import EncoderConfig
from model.huggingface import ModelError, load_weights, read_config
from model.pretraining import PretrainingModel
from training import checkpoint
from training.config import Recipe
from training.run_folder import RECIPE_FILE


class SavedRun(NamedTuple):
    """A checkpoint put together in one process."""

    recipe: Recipe
    raw: RawRecipe
    store: TokenStore
    model: PretrainingModel  # float32, on the CPU
    step: int


def load_run(path: Path) -> SavedRun:
    """The newest checkpoint of a run folder, or the one that ``path`` is, with the recipe that it was trained by."""
    found = checkpoint.find(path)
    raw = read_recipe(found.path.parent.parent / RECIPE_FILE)
    recipe = parse_recipe(raw, Recipe)
    store = TokenStore.open(Path(recipe.store))
    state = found.run_state()
    if state["store"] != store.fingerprint:
        raise UserError(
            f"{found.path} was trained on another store than {recipe.store} is now. Prepare that one again."
        )
    config = EncoderConfig(**state["encoder"])
    with torch.device("meta"):
        model = PretrainingModel(
            config, recipe.model.temperature, learn_temperature=recipe.model.learn_temperature
        )
    weights = {name: tensor.float() for name, tensor in found.weights()}
    model.load_state_dict(weights, assign=True)
    return SavedRun(recipe, raw, store, model.eval(), int(state["step"]))


def model_of(source: Path, recipe_path: str | None) -> tuple[PretrainingModel, Recipe]:
    """The model of a run, a checkpoint or a Hugging Face folder, and the recipe whose sets measure it."""
    if not source.exists():
        raise UserError(f"{source}: there is no such folder.")
    if (source / "config.json").is_file():
        recipe = parse_recipe(read_recipe(recipe_path or "recipes/demo.yaml"), Recipe)
        try:
            config = read_config(source)
            weights = load_weights(source, config)
        except ModelError as error:
            raise UserError(str(error)) from None
        model = PretrainingModel(config)
        missing = model.load_state_dict(weights, strict=False).missing_keys
        _same_tokenizer(source, recipe)
        if recipe.evaluation.masked and any(name.startswith("head.") for name in missing):
            print(f"{source} has no masked-token head: masked accuracy is left out")
            without = recipe.evaluation.model_copy(update={"masked": ()})
            recipe = recipe.model_copy(update={"evaluation": without})
        return model.eval(), recipe
    run = load_run(source)
    chosen = parse_recipe(read_recipe(recipe_path), Recipe) if recipe_path else run.recipe
    return run.model, chosen


def _same_tokenizer(source: Path, recipe: Recipe) -> None:
    store = TokenStore.open(Path(recipe.store))
    mine, theirs = source / "tokenizer.json", store.tokenizer_folder / "tokenizer.json"
    if mine.is_file() and json.loads(mine.read_bytes()) != json.loads(theirs.read_bytes()):
        raise UserError(
            f"{source} has another tokenizer than the store {recipe.store}. Prepare a store with tokenizer.path"
            f" {source} and name its recipe with --recipe."
        )
