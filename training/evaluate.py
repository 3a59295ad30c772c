"""Command: measure a checkpoint, a run or an exported folder on a recipe's evaluation sets.

python -m training.evaluate RUN_OR_CHECKPOINT_OR_EXPORT [--recipe R] [--floors SECONDS]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from data.batch import PackedBatch
from data.recipe import UserError, parse_recipe, read_recipe
from data.store import TokenStore
from model.generation import Decoding
from model.huggingface import ModelError, load_weights, read_config
from model.pretraining import PretrainingModel, PretrainingOutput
from training import environment
from training.build import open_data, pseudo_tokens_of
from training.config import Recipe


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
    from training.export import load_run

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


def main() -> int:
    """Measure; prints a table and, with --out, writes the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a run folder, a checkpoint in it, or an exported folder")
    parser.add_argument(
        "--recipe", help="whose evaluation sets to use (default: the run's own, or recipes/demo.yaml)"
    )
    parser.add_argument(
        "--floors", type=float, metavar="SECONDS", help="also measure the floors, token means trained so long"
    )
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    arguments = parser.parse_args()
    try:
        if arguments.out and not arguments.out.resolve().parent.is_dir():
            raise UserError(f"--out {arguments.out}: there is no folder {arguments.out.resolve().parent}.")
        environment.prepare()
        model, recipe = model_of(arguments.source, arguments.recipe)
        data = open_data(recipe, trains=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from training.checkpoint import find
    from training.evaluation import Evaluator
    from training.pseudo_evaluation import Frozen
    from training.tables import print_figures

    # An exported model has no vectors of languages, and can not be told in which one to write.
    writes = model.config.languages == len(data.store.languages)
    evaluator = Evaluator(
        data.store, data.material, recipe.evaluation, recipe.batch.microbatch_tokens,
        recipe.tasks.btmlm if writes else None, pseudo_tokens_of(recipe, data, "cpu") if writes else None,
    )  # fmt: skip
    if evaluator.pseudo is not None:
        run = find(arguments.source).path.parent.parent
        evaluator.pseudo.frozen = Frozen.read(run, evaluator.pseudo.fingerprint, sys.maxsize)

    def forward(batch: PackedBatch, sentence_vectors_only: bool) -> PretrainingOutput:
        return model(batch, sentence_vectors_only=sentence_vectors_only)

    def generate(generation: PackedBatch, decoding: Decoding) -> torch.Tensor:
        return model(generation, decoding=decoding)

    with torch.no_grad():
        figures = {"model": evaluator(forward, generate)}
    if arguments.floors is not None:
        from training.floor_figures import floor_figures

        figures |= floor_figures(data, recipe, arguments.floors)
    print_figures(figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
