"""The teacher: a frozen model in a folder that embeds or scores texts. The only door of sentence-transformers.

A folder is a cross-encoder if its config.json names a class ...ForSequenceClassification; anything else is opened
as a SentenceTransformer, which takes its own folders and plain Hugging Face encoders (mean pooling then).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.recipe import UserError
from data.store import digest_of_values, sha256_of


class Teacher:
    """An opened teacher: ``embed`` for an encoder, ``score`` for both kinds.

    ``prefix`` is put before every text, for models that were trained with one ("query: " of multilingual-e5).
    ``trust_code``: modules that the folder brings along, or names in an installed package, may run.
    """

    def __init__(self, folder: Path, *, prefix: str = "", batch: int = 32, trust_code: bool = False) -> None:
        self.cross_encoder = is_cross_encoder(folder)
        self._prefix = prefix
        self._batch = batch
        self._model: Any = _opened(folder, self.cross_encoder, trust_code)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(n, E) float32 of unit length; of an encoder only."""
        prefixed = [self._prefix + text for text in texts]
        vectors = self._model.encode(
            prefixed, batch_size=self._batch, convert_to_numpy=True, show_progress_bar=False
        ).astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)

    def score(self, anchors: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """(n,) float32: cosine of an encoder, logit of a cross-encoder."""
        if self.cross_encoder:
            pairs = [(self._prefix + a, self._prefix + t) for a, t in zip(anchors, texts, strict=True)]
            # Logits, not probabilities: these are flat where the teacher is sure.
            scores = self._model.predict(
                pairs, batch_size=self._batch, show_progress_bar=False, activation_fn=_identity
            )
            return np.asarray(scores, dtype=np.float32)
        distinct = list(dict.fromkeys([*anchors, *texts]))
        vectors = dict(zip(distinct, self.embed(distinct), strict=True))
        found = [float(vectors[a] @ vectors[t]) for a, t in zip(anchors, texts, strict=True)]
        return np.array(found, dtype=np.float32)


def is_cross_encoder(folder: Path) -> bool:
    """Whether the folder holds a sequence classifier; UserError if it holds no model."""
    config = folder / "config.json"
    if not config.is_file() and not (folder / "modules.json").is_file():
        what = (
            "holds no model (config.json or modules.json)" if folder.is_dir() else "there is no such folder"
        )
        raise UserError(f"--teacher {folder}: {what}; give a SentenceTransformer or Hugging Face folder")
    try:
        values = json.loads(config.read_bytes()) if config.is_file() else {}
    except ValueError as error:
        raise UserError(f"{config}: not JSON ({error}); fetch the model again") from None
    return any(name.endswith("ForSequenceClassification") for name in values.get("architectures") or [])


def teacher_fingerprint(folder: Path, prefix: str) -> str:
    """SHA-256 of the folder's files, their names, and the prefix; caches and hidden files do not count."""
    names = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    kept = [name for name in names if not any(part.startswith((".", "__pycache__")) for part in name.parts)]
    contents = {str(name): sha256_of(folder / name) for name in kept}
    return digest_of_values({"files": contents, "prefix": prefix})


def _opened(folder: Path, cross_encoder: bool, trust_code: bool) -> Any:
    import sentence_transformers  # here: it takes seconds, and who only asks for a fingerprint need not wait

    settings: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": trust_code,
        "model_kwargs": {"dtype": "float32"},
    }
    try:
        if not cross_encoder:
            return sentence_transformers.SentenceTransformer(str(folder), **settings)
        model = sentence_transformers.CrossEncoder(str(folder), **settings)
    except Exception as error:  # whatever a folder that is no sound model makes the library say
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "trust_remote_code=True" in str(error):
            said += " Read it, then allow it with --trust-code."
        raise UserError(f"--teacher {folder}: can not be opened: {said}") from None
    if model.num_labels != 1:
        raise UserError(
            f"--teacher {folder}: a classifier of {model.num_labels} classes gives no score; a cross-encoder has one"
        )
    return model


def _identity(logits: Any) -> Any:
    return logits
