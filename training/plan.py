"""The dry run: what a recipe would build and spend, printed without training anything.

The model stands on the meta device, so a large one costs nothing. Memory is arithmetic, not a measurement, and is
labelled so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.recipe import RawRecipe
from model.parallel.split import whole_shape
from model.parallel.topology import Axis
from model.pretraining import PretrainingModel
from training.build import encoder_config, open_data
from training.config import Recipe
from training.sharding import resolve_sharding

_BYTES = {"bf16": 2, "fp32": 4}


def print_plan(
    recipe: Recipe, raw: RawRecipe, sharding: dict[str, Any], sharding_path: Path, ranks: int
) -> None:
    """Print parameters, tokens, budgets and memory of ``recipe`` on ``ranks`` data ranks."""
    resolved = resolve_sharding(sharding, sharding_path, recipe, raw.path, ranks)
    prepared = (Path(recipe.store) / "manifest.json").is_file()
    data = open_data(recipe) if prepared else None
    ids = _ids(recipe) if data is None else data.material.tokenizer.vocabulary_size
    config = encoder_config(recipe, ids, 0 if data is None else len(data.store.languages))
    tensor = recipe.parallel.tensor
    with torch.device("meta"):
        model = PretrainingModel(config, recipe.model.temperature, tensor=Axis(0, tensor))
    parameters = sum(math.prod(whole_shape(parameter)) for parameter in model.parameters())
    own = sum(parameter.numel() for parameter in model.parameters())
    table = config.vocabulary_size * config.width
    batch = recipe.batch
    stage = int(resolved["zero_optimization"].get("stage", 0))
    print(f"recipe {raw.path}, sharding {sharding_path} (ZeRO-{stage}), {ranks} rank(s)"
          + (f" of {tensor} tensor ranks each" if tensor > 1 else ""))  # fmt: skip
    print(f"  encoder     {config.layers} layers, width {config.width}, {config.heads} heads, feed-forward"
          f" {config.feed_forward}")  # fmt: skip
    at_most = "" if prepared else "at most "
    print(
        f"  vocabulary  {config.vocabulary_size:,} rows in the token table, {at_most}{ids:,} ids in the tokenizer"
    )
    languages = ""
    if recipe.model.language_embeddings:
        languages = f", {config.languages * config.width:,} the languages', which are not exported"
        if data is None:
            languages = ", without the table of languages, which are counted when the store is prepared"
    print(f"  parameters  {parameters:,} ({table:,} of them the token table{languages})")
    print(f"  step        {batch.step_tokens:,} tokens = {batch.step_tokens // batch.microbatch_tokens} microbatches of"
          f" {batch.microbatch_tokens:,}; {resolved['gradient_accumulation_steps']} of them a rank")  # fmt: skip
    print(f"  run         {recipe.steps:,} steps, {recipe.steps * batch.step_tokens:,} tokens")
    print(
        "  budgets     "
        + (
            "the store is not prepared yet: python -m data.prepare --recipe " + str(raw.path)
            if data is None
            else ""
        )
    )
    if data is not None:
        begins = recipe.sampling.begins()
        nothing = np.zeros(len(data.streams), bool)
        shares = [data.shares(begin, nothing, {}).shares for begin in begins]
        for begin in begins[1:]:
            print(f"    a further stage from {begin:,} tokens on")
        for task in recipe.tasks.enabled():
            members = [i for i, stream in enumerate(data.streams) if stream.task.name == task]
            records = sum(len(data.streams[i]) for i in members)
            parts = ", ".join(f"{100 * of_stage[members].sum():5.1f}" for of_stage in shares)
            print(f"    {task:<22} {parts} % of the tokens, {len(members):4d} streams, {records:,} records")
    print("  memory of a rank, by arithmetic (not measured):")
    wide = resolved.get("data_types", {}).get("grad_accum_dtype") == "fp32"
    for name, size in memory(recipe, own, config.layers, config.width, stage, ranks, wide).items():
        print(f"    {name:<22} {size / 2**30:8.3f} GiB")


def memory(
    recipe: Recipe,
    parameters: int,
    layers: int,
    width: int,
    stage: int,
    ranks: int,
    wide_gradients: bool = False,
) -> dict[str, float]:
    """Bytes of a rank: weights, gradients and Adam's float32 states as ZeRO shards them; activations by layer.

    ``parameters`` are those that a tensor rank has, ``ranks`` the data ranks.
    ``wide_gradients``: they are added up in float32 whatever the weights are.
    Activations: about 34 bytes for each token, unit of width and layer in bf16, twice as much in float32
    (Korthikanti et al., 2022, without the attention matrix, which is never held), or the layers' inputs alone
    with activation checkpointing. Of the 34, 24 are shared among the tensor ranks, and all of them with
    ``parallel.sequence``.
    """
    size = _BYTES[recipe.precision]
    tokens = recipe.batch.microbatch_tokens
    states = 12 if recipe.precision == "bf16" else 8  # master weights, if they are others, and two moments
    tensor, sequence = recipe.parallel.tensor, recipe.parallel.sequence
    if recipe.model.activation_checkpointing:
        per_unit = size / (tensor if sequence else 1)
    else:
        per_unit = size * (17 / tensor if sequence else 5 + 12 / tensor)
    parts = {
        "weights": parameters * size / (ranks if stage == 3 else 1),
        "gradients": parameters * (4 if wide_gradients else size) / (ranks if stage >= 2 else 1),
        "optimizer": parameters * states / (ranks if stage >= 1 else 1),
        "activations": float(tokens * width * layers * per_unit),
    }
    return {**parts, "together": sum(parts.values())}


def _ids(recipe: Recipe) -> int:
    if recipe.tokenizer.train is not None:
        return recipe.tokenizer.train.vocabulary_size
    from data.tokenizer import Tokenizer

    assert recipe.tokenizer.path is not None
    return Tokenizer.open(Path(recipe.tokenizer.path)).vocabulary_size
