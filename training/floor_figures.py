"""The two floors measured on a recipe's own retrieval sets, as the encoder is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import vstack

from data.store import TokenStore
from training.build import DataParts
from training.config import Recipe
from training.evaluation import compared_corpora, retrieval_figures
from training.floors import (
    TokenMeanSettings,
    TrainingTexts,
    inverse_document_frequency,
    ngram_counts,
    ngram_vectors,
    train_token_means,
)

_SECONDS_BETWEEN_LINES = 20


def floor_figures(data: DataParts, recipe: Recipe, seconds: float) -> dict[str, dict[str, float]]:
    """Floor -> figures. Token means are trained for ``seconds`` on all cores, on the pairs the encoder reads."""
    vectors = {"3-grams": _ngrams(data.store, recipe), "token means": _token_means(data, recipe, seconds)}
    return {
        floor: retrieval_figures(data.store, recipe.evaluation, of_corpus)
        for floor, of_corpus in vectors.items()
    }


def _ngrams(store: TokenStore, recipe: Recipe) -> dict[str, Any]:
    """Corpus -> sparse vectors of all its segments."""
    counts = {}
    for name in compared_corpora(recipe.evaluation):
        corpus = store.corpora[name]
        counts[name] = ngram_counts([corpus.text(s) for s in range(len(corpus.segment_record))])
    frequency = inverse_document_frequency(vstack(list(counts.values())))
    return {name: ngram_vectors(of_corpus, frequency) for name, of_corpus in counts.items()}


def _token_means(data: DataParts, recipe: Recipe, seconds: float) -> dict[str, Any]:
    """Corpus -> vectors of all its segments."""
    corpora = data.store.corpora
    trained = [corpus for corpus in corpora.values() if corpus.kind == "parallel" and not corpus.held_out]
    offsets = np.cumsum([0, *(len(corpus.record_starts) - 1 for corpus in trained)])
    texts = TrainingTexts(
        [corpus.ids(s) for corpus in trained for s in range(len(corpus.segment_record))],
        np.concatenate([c.segment_record + offset for c, offset in zip(trained, offsets, strict=False)]),
        np.concatenate([corpus.segment_groups for corpus in trained]).view(np.int64),
    )
    settings = TokenMeanSettings(vocabulary_size=data.material.tokenizer.vocabulary_size)
    means = train_token_means(texts, settings, seconds=seconds, progress=_speaking(seconds))
    return {
        name: means.vectors([corpora[name].ids(s) for s in range(len(corpora[name].segment_record))])
        for name in compared_corpora(recipe.evaluation)
    }


def _speaking(seconds: float) -> Callable[[int, float], None]:
    """Says now and then how far the training of the token means is."""
    started = last = time.monotonic()

    def speak(step: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            left = max(0.0, seconds - (now - started))
            print(
                f"  token means: step {step}, loss {loss:.3f}, {left:.0f} s left", file=sys.stderr, flush=True
            )

    return speak
