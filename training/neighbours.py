"""Nearest neighbours to look at: held-out texts and the texts of other languages that lie next to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.recipe import UserError
from data.task import Material
from model.huggingface import ModelError, load_weights, read_config
from model.pretraining import PretrainingModel
from training.build import DataParts
from training.evaluation import sentence_batch


def neighbours(export: Path, data: DataParts, corpus_name: str, count: int = 3) -> list[tuple[str, ...]]:
    """(language, text, language, nearest text of another language) of held-out rows, by the exported weights."""
    try:
        config = read_config(export)
        weights = load_weights(export, config)
    except ModelError as error:
        raise UserError(str(error)) from None
    model = PretrainingModel(config).eval()
    model.load_state_dict(weights, strict=False)
    corpus = data.store.corpora[corpus_name]
    vectors = _embedded(model, [corpus.ids(s) for s in range(len(corpus.segment_record))], data.material)
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


def _embedded(model: PretrainingModel, texts: Sequence[np.ndarray], material: Material) -> np.ndarray:
    parts = []
    with torch.no_grad():
        for start in range(0, len(texts), 256):
            output = model(sentence_batch(texts[start : start + 256], material), sentence_vectors_only=True)
            parts.append(output.sentence_vectors.numpy())
    return np.concatenate(parts)
