"""PretrainingModel: the encoder and its heads, one forward for all training tasks of a microbatch."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kernels.vocabulary import VocabularyLoss, vocabulary_loss
from model.config import EncoderConfig
from model.encoder import Encoder
from model.generation import Decoding
from model.heads import InverseTemperature, MaskedTokenHead, sentence_vectors
from model.layer import LayerNormClass


class Batch(Protocol):
    """The columns of a microbatch that the model reads; ``data.batch.PackedBatch`` is one."""

    @property
    def token_ids(self) -> Tensor: ...  # noqa: D102
    @property
    def position_ids(self) -> Tensor: ...  # noqa: D102
    @property
    def language_ids(self) -> Tensor: ...  # noqa: D102
    @property
    def language_shown(self) -> Tensor: ...  # noqa: D102
    @property
    def document_starts(self) -> Tensor: ...  # noqa: D102
    @property
    def context_lengths(self) -> Tensor: ...  # noqa: D102
    @property
    def predicted(self) -> Tensor: ...  # noqa: D102
    @property
    def targets(self) -> Tensor: ...  # noqa: D102
    @property
    def draws(self) -> Tensor: ...  # noqa: D102
    @property
    def sentence_tokens(self) -> int: ...  # noqa: D102
    @property
    def sentence_documents(self) -> int: ...  # noqa: D102


class PretrainingOutput(NamedTuple):
    """What the objectives read. A NamedTuple and not a dataclass: ZeRO-3's hooks look into tuples only."""

    prediction_losses: Tensor  # (M,) float32
    predictions_correct: Tensor  # (M,) bool
    sentence_vectors: Tensor  # (sentence_documents, D) float32, unit length
    inverse_temperature: Tensor  # () float32, within [1, 100]


class PretrainingModel(nn.Module):
    """Encoder, masked-token head (its table is the encoder's), sentence vectors and their temperature.

    Weights depend on ``seed`` alone. ``layer_norm`` is a class with the interface of ``torch.nn.LayerNorm``;
    ``checkpoint_layers`` trades time for memory; ``vocabulary_loss`` names an implementation of that loss.
    Works on the meta device.
    """

    def __init__(
        self,
        config: EncoderConfig,
        initial_temperature: float = 0.05,
        *,
        learn_temperature: bool = True,
        seed: int = 0,
        layer_norm: LayerNormClass = nn.LayerNorm,
        checkpoint_layers: bool = False,
        vocabulary_loss: str = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_loss = vocabulary_loss
        self.encoder = Encoder(config, layer_norm=layer_norm, checkpoint_layers=checkpoint_layers)
        self.head = MaskedTokenHead(config, layer_norm)
        self.temperature = InverseTemperature(initial_temperature, learn_temperature)
        initialise(self, config, seed)

    def forward(
        self, batch: Batch, sentence_vectors_only: bool = False, decoding: Decoding | None = None
    ) -> PretrainingOutput | Tensor:
        """Encode the whole stream; losses at its predicted positions, vectors of its first documents.

        ``sentence_vectors_only`` runs the encoder on tokens [0, sentence_tokens) alone and predicts nothing.
        With ``decoding`` the result is ids (M,) for the predicted positions, and nothing else; without gradient.

        Every trainable parameter is in the graph of ``prediction_losses``, also where nothing is predicted
        and nothing compared: ZeRO-3 would apply the last step's gradient again to one that is not. So a
        training loss must always contain ``prediction_losses.sum()``, empty or not.
        """
        if decoding is not None:
            return self._generated(batch, decoding)
        documents = batch.sentence_documents
        tokens = batch.sentence_tokens if sentence_vectors_only else len(batch.token_ids)
        counted = documents if sentence_vectors_only else len(batch.context_lengths)
        hidden = self.encoder(
            batch.token_ids[:tokens],
            batch.position_ids[:tokens],
            batch.document_starts[: counted + 1],
            batch.context_lengths[:counted],
            _told_languages(batch)[:tokens],
        )
        vectors = sentence_vectors(hidden[: batch.sentence_tokens], batch.document_starts[: documents + 1])
        inverse_temperature = self.temperature(hidden)
        if sentence_vectors_only:
            nothing = vectors.new_empty(0)
            return PretrainingOutput(nothing, nothing.bool(), vectors, inverse_temperature)

        def losses_of(features: Tensor, table: Tensor, bias: Tensor) -> VocabularyLoss:
            return vocabulary_loss(features, table, bias, batch.targets, implementation=self.vocabulary_loss)

        losses, correct = self.head(
            hidden.index_select(0, batch.predicted), self.encoder.embedding.word.weight, losses_of
        )
        return PretrainingOutput(losses + 0.0 * inverse_temperature, correct, vectors, inverse_temperature)

    @torch.no_grad()
    def _generated(self, batch: Batch, decoding: Decoding) -> Tensor:
        """Ids (M,) for the predicted positions of ``batch``."""
        hidden = self.encoder(
            batch.token_ids,
            batch.position_ids,
            batch.document_starts,
            batch.context_lengths,
            _told_languages(batch),
        ).index_select(0, batch.predicted)
        languages = batch.language_ids[batch.predicted]

        def ids_of(features: Tensor, table: Tensor, bias: Tensor) -> Tensor:
            return decoding.choose(features, table, bias, languages, batch.draws)

        ids: Tensor = self.head(hidden, self.encoder.embedding.word.weight, ids_of)
        return ids


def _told_languages(batch: Batch) -> Tensor:
    """(T,) the language of each token, -1 where it is not told."""
    return batch.language_ids.where(batch.language_shown, -1)


def initialise(module: nn.Module, config: EncoderConfig, seed: int) -> None:
    """Fill matrices from a normal of ``initializer_std``; zero the tables' rows of padding, as in XLM-R, and languages.

    Biases are zero, norms as torch makes them. Every matrix is drawn on the CPU in float32 from a generator
    of its own, keyed by ``seed`` and its name, so its values depend neither on the device nor on what else
    the model holds. On the meta device there is nothing to fill.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        with torch.no_grad():
            if name.endswith("language.weight"):
                parameter.zero_()
            elif parameter.ndim == 2:
                key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
                generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
                drawn = torch.empty(parameter.shape).normal_(0.0, config.initializer_std, generator=generator)
                if name.endswith(("word.weight", "position.weight")):
                    drawn[config.pad_id] = 0.0
                parameter.copy_(drawn)
            elif name.endswith("bias"):
                parameter.zero_()
