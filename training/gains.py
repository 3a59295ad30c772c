"""Command: what a run gained: retrieval before and after, beside two honest floors, and nearest neighbours to look at.

python -m training.gains RUN EXPORT [--floors SECONDS]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from data.recipe import UserError, parse_recipe, read_recipe
from data.tasks import Material
from training import environment
from training.build import DataParts, open_data
from training.config import Recipe
from training.metrics import read_evaluations, read_metrics
from training.run_folder import RECIPE_FILE

Figures = Mapping[str, Mapping[str, float]]  # column -> name of the figure -> value


def floor_figures(data: DataParts, recipe: Recipe, seconds: float) -> dict[str, dict[str, float]]:
    """The recipe's retrieval sets under the two floors; token means are trained for ``seconds`` on all cores."""
    from training.evaluation import PIVOT, distractors, language_rows
    from training.floors import (
        TokenMeanSettings,
        TrainingTexts,
        inverse_document_frequency,
        ngram_counts,
        ngram_vectors,
        train_token_means,
    )
    from training.retrieval import LanguageRows, bitext_retrieval

    corpora = data.store.corpora
    trained = [c for c in corpora.values() if c.kind == "parallel" and not c.held_out]
    offsets = np.cumsum([0, *(len(c.record_starts) - 1 for c in trained)])
    texts = TrainingTexts(
        [c.ids(s) for c in trained for s in range(len(c.segment_record))],
        np.concatenate([c.segment_record + offset for c, offset in zip(trained, offsets, strict=False)]),
        np.concatenate([c.segment_groups for c in trained]).view(np.int64),
    )
    settings = TokenMeanSettings(vocabulary_size=data.material.tokenizer.vocabulary_size)
    means = train_token_means(texts, settings, seconds=seconds)
    needed = sorted({n for r in recipe.evaluation.retrieval.values() for n in (r.corpus, *r.among)})
    ids = {n: [corpora[n].ids(s) for s in range(len(corpora[n].segment_record))] for n in needed}
    counts = {
        n: ngram_counts([corpora[n].text(s) for s in range(len(corpora[n].segment_record))]) for n in needed
    }
    from scipy.sparse import vstack

    frequency = inverse_document_frequency(vstack(list(counts.values())))
    vectors = {
        "3-grams": {n: ngram_vectors(counts[n], frequency) for n in needed},
        "token means": {n: means.vectors(ids[n]) for n in needed},
    }
    figures: dict[str, dict[str, float]] = {}
    for floor, of_corpus in vectors.items():
        figures[floor] = {}
        for name, sets in recipe.evaluation.retrieval.items():
            rows: dict[str, LanguageRows] = language_rows(data.store, sets.corpus, of_corpus)
            more = distractors(data.store, sets.among, of_corpus)
            figures[floor] |= bitext_retrieval(rows, distractors=more, pivot=PIVOT).scalars(name)
    return figures


def print_figures(figures: Figures) -> None:
    """A table of the retrieval means, one row a set and one column each; then the masked tasks."""
    columns = list(figures)
    names = [
        n
        for n in next(iter(figures.values()))
        if n.startswith("retrieval/") and n.endswith(("/mean", "/mean_of_others"))
    ]
    names += [n for n in next(iter(figures.values())) if n.startswith("masked/") and n.count("/") == 2]
    width = max((len(name) for name in names), default=0)
    print(" " * width + "".join(f"{column:>14}" for column in columns))
    for name in names:
        print(f"{name:<{width}}" + "".join(_cell(figures[column].get(name), name) for column in columns))


def print_languages(figures: Figures, name: str, pivot: str = "en") -> None:
    """The mean of both directions of every language of one retrieval set."""
    columns = list(figures)
    prefix = f"retrieval/{name}/"
    languages = sorted({key.removeprefix(prefix).removesuffix(f"-{pivot}") for key in next(iter(figures.values()))
                        if key.startswith(prefix) and key.endswith(f"-{pivot}")})  # fmt: skip
    print(f"{name}: accuracy@1 with {pivot}, mean of both directions")
    print("    " + "".join(f"{column:>14}" for column in columns))
    for language in languages:
        both = [f"{prefix}{language}-{pivot}", f"{prefix}{pivot}-{language}"]
        means = [[f[key] for key in both if key in f] for f in figures.values()]
        print(f"  {language}" + "".join(_cell(sum(m) / len(m) if m else None, "accuracy") for m in means))


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return f"{'-':>14}"
    return f"{value:14.3f}" if name.endswith("loss") else f"{100 * value:12.1f} %"


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
        data = open_data(recipe)
        first = next(iter(recipe.evaluation.retrieval.values())).corpus
        nearest_ones = neighbours(arguments.export, data, first)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    before, after = evaluations[min(evaluations)], evaluations[max(evaluations)]
    trained = sum(step["step_seconds"] for step in read_metrics(arguments.run))
    seconds = arguments.floors if arguments.floors is not None else trained
    print(
        f"training the token-mean floor for {seconds:.0f} s, as long as the encoder was trained ...",
        flush=True,
    )
    figures = {"before": before, "after": after, **floor_figures(data, recipe, seconds)}
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
