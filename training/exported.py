"""A run -> a Hugging Face and sentence-transformers folder, reopened and compared with the training model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from data.recipe import UserError
from data.task import Material
from data.tokenizer import Tokenizer
from model.huggingface import ModelError, reopened_outputs, write_folder
from training.evaluation import sentence_batch
from training.saved_run import SavedRun

PARITY_FILE = "parity.json"
TOLERANCE = 1e-4  # float32 against float32, vectors of unit length and logits of size about 10
_SENTENCES = 64
_AT_ONCE = 8
_LOGITS = 16  # tokens of them whose logits are compared: each has one for every row of the table
# Written out in a text they are plain text to us and special tokens to transformers; such texts prove nothing.
_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def export(run: SavedRun, out: Path) -> dict[str, float]:
    """Write the folder ``out`` and its parity.json; returns the largest differences.

    The memory of ``run.model`` is given back before what was written is opened: the model is in memory once.

    Raises:
        UserError: the folder exists and is not an export, or what was reopened differs from the training model.

    """
    out = out.resolve()
    foreign = not out.is_dir() or (any(out.iterdir()) and not (out / PARITY_FILE).exists())
    if out.exists() and foreign:
        raise UserError(f"{out} exists and is not an earlier export. Name another folder, or empty it.")
    writing = out.with_name(f".{out.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        write_folder(
            run.model.state_dict(),
            run.model.config,
            writing,
            tokenizer_folder=run.store.tokenizer_folder,
            maximum_tokens=run.recipe.maximum_tokens,
        )
        differences = parity(run, writing)
    except (ModelError, OSError) as error:
        raise UserError(f"{out} could not be written: {error}") from None
    report = {
        "step": run.step,
        "tolerance": TOLERANCE,
        "sentences": _SENTENCES,
        "largest_difference": differences,
    }
    (writing / PARITY_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failed = {name: value for name, value in differences.items() if not value <= TOLERANCE}
    if failed:
        raise UserError(
            f"the export differs from the training model by more than {TOLERANCE}: {failed}. It is left in {writing}."
        )
    shutil.rmtree(out, ignore_errors=True)
    writing.rename(out)
    return differences


def parity(run: SavedRun, folder: Path) -> dict[str, float]:
    """Largest differences between the training forward and the folder reopened, on real sentences of the store."""
    corpus = next(iter(run.store.corpora.values()))
    count = len(corpus.segment_language)
    chosen = [
        segment
        for segment in np.unique(np.linspace(0, count - 1, min(_SENTENCES, count)).astype(int)).tolist()
        if not any(special in corpus.text(segment) for special in _SPECIAL_TOKENS)
    ]
    texts = [corpus.text(segment) for segment in chosen]
    tokenizer = Tokenizer.open(run.store.tokenizer_folder)
    material = Material(tokenizer, None, run.store.languages, run.recipe.maximum_tokens)
    ids = [corpus.ids(segment) for segment in chosen]
    batches = [
        sentence_batch(ids[first : first + _AT_ONCE], material) for first in range(0, len(ids), _AT_ONCE)
    ]
    tokens = sum(len(batch.token_ids) for batch in batches)
    sample = torch.linspace(
        0, tokens - 1, min(_LOGITS, tokens)
    ).long()  # of all, logits can outgrow the model
    with torch.no_grad():
        hidden = torch.cat([
            run.model.encoder(
                batch.token_ids, batch.position_ids, batch.document_starts, batch.context_lengths
            )
            for batch in batches
        ])  # fmt: skip
        vectors = torch.cat(
            [run.model(batch, sentence_vectors_only=True).sentence_vectors for batch in batches]
        )
        logits = run.model.head.logits(hidden[sample], run.model.encoder.embedding.word.weight)
    own = [
        batch.token_ids[start:end].tolist()
        for batch in batches
        for start, end in zip(batch.document_starts[:-1], batch.document_starts[1:], strict=True)
    ]
    run.model.to("meta")
    reopened = reopened_outputs(
        folder, texts, run.recipe.maximum_tokens, texts_at_once=_AT_ONCE, logits_at=sample
    )
    return {
        "token_ids": float(own != reopened.token_ids),
        "hidden": _largest(hidden, reopened.hidden),
        "logits": _largest(logits, reopened.logits),
        "sentence_vectors": _largest(vectors, reopened.sentence_vectors),
    }


def _largest(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((mine - theirs).abs().max()) if mine.shape == theirs.shape else float("inf")
