"""Command: what a run gained: retrieval before and after, beside two honest floors, and nearest neighbours to look at.

python -m training.gains RUN EXPORT [--floors SECONDS]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.recipe import UserError, parse_recipe, read_recipe
from data.task import Material
from training import environment
from training.build import DataParts, open_data
from training.config import Recipe
from training.metrics import append_event, read_evaluations, read_metrics
from training.run_folder import RECIPE_FILE
from training.tables import print_figures, print_languages


def neighbours(export: Path, data: DataParts, corpus_name: str, count: int = 3) -> list[tuple[str, ...]]:
    """(language, text, language, nearest text of another language) of held-out rows, by the exported weights."""
    from model.huggingface import ModelError, load_weights, read_config
    from model.pretraining import PretrainingModel
    from training.evaluation import sentence_batch

    try:
        config = read_config(export)
        weights = load_weights(export, config)
    except ModelError as error:
        raise UserError(str(error)) from None
    model = PretrainingModel(config).eval()
    model.load_state_dict(weights, strict=False)
    corpus = data.store.corpora[corpus_name]
    material: Material = data.material
    vectors = _embedded(
        model, sentence_batch, [corpus.ids(s) for s in range(len(corpus.segment_record))], material
    )
    languages = [data.store.languages[number] for number in corpus.segment_language]
    found: list[tuple[str, ...]] = []
    wanted = ["de", "ja", "ar", "ru", "zh", "fr"]
    for query_language in wanted:
        of_language = [s for s, language in enumerate(languages) if language == query_language]
        if not of_language or len(found) == count:
            continue
        # A sentence of ordinary length, the same one every time.
        query = min(of_language, key=lambda s: (abs(len(corpus.ids(s)) - 18), s))
        similar = vectors @ vectors[query]
        similar[[s for s, language in enumerate(languages) if language == query_language]] = -2
        nearest = int(similar.argmax())
        found.append((query_language, corpus.text(query), languages[nearest], corpus.text(nearest)))
    return found


def _embedded(
    model: torch.nn.Module, batch_of: object, texts: Sequence[np.ndarray], material: Material
) -> np.ndarray:
    assert callable(batch_of)
    parts = []
    with torch.no_grad():
        for start in range(0, len(texts), 256):
            output = model(batch_of(texts[start : start + 256], material), sentence_vectors_only=True)
            parts.append(output.sentence_vectors.numpy())
    return np.concatenate(parts)


def main() -> int:
    """Print what was gained."""
    parser = argparse.ArgumentParser(prog="python -m training.gains", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("export", type=Path, help="its export")
    parser.add_argument(
        "--floors",
        type=float,
        metavar="SECONDS",
        help="training time of the token means (default: the run's own)",
    )
    arguments = parser.parse_args()
    try:
        environment.prepare()
        recipe = parse_recipe(read_recipe(arguments.run / RECIPE_FILE), Recipe)
        if not recipe.evaluation.retrieval:
            raise UserError(
                f"{arguments.run}: its recipe has no evaluation.retrieval, so there is nothing to show."
            )
        evaluations = read_evaluations(arguments.run)
        if len(evaluations) < 2:
            raise UserError(
                f"{arguments.run}: the run has no evaluation after its training yet; let it finish."
            )
        data = open_data(recipe, trains=False)
        first = next(iter(recipe.evaluation.retrieval.values())).corpus
        nearest_ones = neighbours(arguments.export, data, first)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    before, after = evaluations[min(evaluations)], evaluations[max(evaluations)]
    steps = read_metrics(arguments.run)
    trained = sum(step["step_seconds"] for step in steps)
    seconds = arguments.floors if arguments.floors is not None else trained
    print(
        f"training the token-mean floor for {seconds:.0f} s, as long as the encoder was trained ...",
        flush=True,
    )
    from training.floor_figures import floor_figures

    floors = floor_figures(data, recipe, seconds)
    for name, scalars in floors.items():
        append_event(arguments.run, "floor", name=name, scalars=scalars)
    figures = {"before": before, "after": after, **floors}
    print()
    for name in recipe.evaluation.retrieval:
        print_languages(figures, name)
        print()
    print_figures(figures)
    print(f"\nthe encoder lies in {arguments.export}; nearest neighbours by its vectors:")
    for language, text, other, nearest in nearest_ones:
        print(f"  {language}  {text}\n  {other}  {nearest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
