"""The texts that every contestant makes batches of: those that a recipe trains on, as ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from data.recipe import parse_recipe, read_recipe


def write_texts(recipe_path: Path, folder: Path) -> str:
    """Prepare the recipe's store and write its training texts for all contestants; returns what they are."""
    raw = read_recipe(recipe_path)
    from training.config import Recipe

    recipe = parse_recipe(raw, Recipe)
    from data.preparation import prepare
    from data.store import TokenStore

    prepare(recipe)
    store = TokenStore.open(Path(recipe.store))
    parts: list[np.ndarray] = []
    for corpus in store.corpora.values():
        if corpus.held_out or corpus.kind == "scored":
            continue
        limit = recipe.maximum_tokens - 2
        parts += [np.r_[0, corpus.ids(s)[:limit], 2].astype(np.int32) for s in range(corpus.segments)]
    lengths = np.array([len(part) for part in parts])
    np.save(folder / "texts.npy", np.concatenate(parts))
    np.save(folder / "ends.npy", np.cumsum(lengths))
    shutil.copytree(store.tokenizer_folder, folder / "tokenizer")
    (folder / "request.json").write_text(json.dumps({"recipe": str(recipe_path)}))
    low, middle, high = np.percentile(lengths, [10, 50, 90])
    return (
        f"{len(parts):,} texts of {recipe_path}, {lengths.mean():.1f} tokens each"
        f" (10 % up to {low:.0f}, half up to {middle:.0f}, 90 % up to {high:.0f})"
    )
