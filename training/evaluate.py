"""Command: measure a checkpoint, a run or an exported folder on a recipe's evaluation sets.

python -m training.evaluate RUN_OR_CHECKPOINT_OR_EXPORT [--recipe R] [--floors SECONDS]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from data.recipe import UserError
from training import environment


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
        if not arguments.source.exists():
            raise UserError(f"{arguments.source}: there is no such folder.")
        environment.prepare()
        figures = _measured(arguments.source, arguments.recipe, arguments.floors)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from training.tables import print_figures

    print_figures(figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _measured(
    source: Path, recipe_path: str | None, floor_seconds: float | None
) -> dict[str, dict[str, float]]:
    """The figures of the model, and of the floors if they are to be trained."""
    import torch

    from data.batch import PackedBatch
    from model.generation import Decoding
    from model.pretraining import PretrainingOutput
    from training.build import open_data, pseudo_tokens_of
    from training.checkpoint import find
    from training.evaluation import Evaluator
    from training.pseudo_evaluation import Frozen
    from training.saved_run import model_of

    model, recipe = model_of(source, recipe_path)
    data = open_data(recipe, trains=False)
    # An exported model has no vectors of languages, and can not be told in which one to write.
    writes = model.config.languages == len(data.store.languages)
    evaluator = Evaluator(
        data.store, data.material, recipe.evaluation, recipe.batch.microbatch_tokens,
        recipe.tasks.btmlm if writes else None, pseudo_tokens_of(recipe, data, "cpu") if writes else None,
    )  # fmt: skip
    if evaluator.pseudo is not None:
        run = find(source).path.parent.parent
        evaluator.pseudo.frozen = Frozen.read(run, evaluator.pseudo.fingerprint, sys.maxsize)

    def forward(batch: PackedBatch, sentence_vectors_only: bool) -> PretrainingOutput:
        return model(batch, sentence_vectors_only=sentence_vectors_only)

    def generate(generation: PackedBatch, decoding: Decoding) -> torch.Tensor:
        return model(generation, decoding=decoding)

    with torch.no_grad():
        figures = {"model": evaluator(forward, generate)}
    if floor_seconds is not None:
        from training.floor_figures import floor_figures

        figures |= floor_figures(data, recipe, floor_seconds)
    return figures


if __name__ == "__main__":
    sys.exit(main())
