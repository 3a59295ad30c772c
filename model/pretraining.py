"""PretrainingModel: the encoder and its heads, one forward for all training tasks of a microbatch."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kernels.vocabulary import VocabularyLoss, vocabulary_loss
from model.config import EncoderConfig
from model.encoder import Encoder
from model.generation import Decoding
from model.heads import InverseTemperature, MaskedTokenHead, sentence_vectors
from model.layer import LayerNormClass
from model.memory import take_memory
from model.parallel.plan import cut
from model.parallel.split import split_of, whole_shape
from model.parallel.topology import Axis

DRAWN_AT_ONCE = 2**24  # weights, when a model is initialised


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

    prediction_total: (
        Tensor  # () float32, weighted sum of the losses at the predicted positions, differentiable
    )
    prediction_losses: Tensor  # (M,) float32, without gradient
    predictions_correct: Tensor  # (M,) bool
    sentence_vectors: Tensor  # (sentence_documents, D) float32, unit length
    inverse_temperature: Tensor  # () float32, within [1, 100]


class PretrainingModel(nn.Module):
    """Encoder, masked-token head (its table is the encoder's), sentence vectors and their temperature.

    Weights depend on ``seed`` alone. ``layer_norm`` is a class with the interface of ``torch.nn.LayerNorm``;
    ``checkpoint_layers`` trades time for memory; ``vocabulary_loss`` names an implementation of that loss.
    Works on the meta device. Without a seed the weights have room and no values: ``first_values`` gives them, one after
    the other, so that each may be put away before the next is there.

    Over the ranks of ``tensor`` the model is cut as model/parallel/plan.py says, with ``sequence`` also what lies
    between the layers. All of them run it on the same batches, and each gets the whole output.
    """

    def __init__(
        self,
        config: EncoderConfig,
        initial_temperature: float = 0.05,
        *,
        learn_temperature: bool = True,
        seed: int | None = 0,
        layer_norm: LayerNormClass = nn.LayerNorm,
        checkpoint_layers: bool = False,
        vocabulary_loss: str = "auto",
        tensor: Axis = Axis(),
        sequence: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_loss = vocabulary_loss
        self.tensor = tensor
        rows = tensor if sequence else Axis()
        device = torch.get_default_device()
        later = tensor.size > 1 or seed is None
        with torch.device("meta") if later else nullcontext():  # no rank ever holds the whole
            self.encoder = Encoder(
                config, layer_norm=layer_norm, checkpoint_layers=checkpoint_layers, rows=rows
            )
            self.head = MaskedTokenHead(config, layer_norm)
        if tensor.size > 1:
            cut(self, tensor, device, rows=sequence)
        elif later:
            take_memory(self, device)
        self.temperature = InverseTemperature(initial_temperature, learn_temperature)
        if seed is not None:
            initialise(self, config, seed, tensor)

    def forward(
        self,
        batch: Batch,
        prediction_weights: Tensor | None = None,
        sentence_vectors_only: bool = False,
        decoding: Decoding | None = None,
    ) -> PretrainingOutput | Tensor:
        """Encode the whole stream; losses at its predicted positions, vectors of its first documents.

        ``prediction_weights`` (M,) are those of the losses in their total, 1 each where they are not given: known
        beforehand, because the gradient of the total is made in the forward (kernels/vocabulary).
        ``sentence_vectors_only`` runs the encoder on tokens [0, sentence_tokens) alone and predicts nothing.
        With ``decoding`` the result is ids (M,) for the predicted positions, and nothing else; without gradient.

        Every trainable parameter is in the graph of ``prediction_total``, also where nothing is predicted and
        nothing compared: ZeRO-3 would apply the last step's gradient again to one that is not. So a training loss
        must always contain it.
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
            None if sentence_vectors_only else _read(batch),
        )
        sentences, predicted = hidden.tensor_split([batch.sentence_tokens])
        vectors = sentence_vectors(sentences, batch.document_starts[: documents + 1])
        inverse_temperature = self.temperature(hidden)
        if sentence_vectors_only:
            nothing = vectors.new_empty(0)
            return PretrainingOutput(
                vectors.new_zeros(()), nothing, nothing.bool(), vectors, inverse_temperature
            )

        def losses_of(features: Tensor, table: Tensor, bias: Tensor) -> VocabularyLoss:
            return vocabulary_loss(
                features, table, bias, batch.targets, prediction_weights,
                ranks=self.tensor.group, vocabulary=self.config.vocabulary_size,
                implementation=self.vocabulary_loss,
            )  # fmt: skip

        total, losses, correct = self.head(predicted, self.encoder.embedding.word.read(), losses_of)
        total = total + 0.0 * inverse_temperature
        return PretrainingOutput(total, losses, correct, vectors, inverse_temperature)

    @torch.no_grad()
    def _generated(self, batch: Batch, decoding: Decoding) -> Tensor:
        """Ids (M,) for the predicted positions of ``batch``."""
        hidden = self.encoder(
            batch.token_ids,
            batch.position_ids,
            batch.document_starts,
            batch.context_lengths,
            _told_languages(batch),
            batch.predicted,
        )
        self.temperature(
            hidden
        )  # not needed, but ZeRO-3 gathers ahead by the order in which ``forward`` uses modules
        languages = batch.language_ids[batch.predicted]

        def ids_of(features: Tensor, table: Tensor, bias: Tensor) -> Tensor:
            return decoding.choose(features, table, bias, languages, batch.draws, self.tensor)

        ids: Tensor = self.head(hidden, self.encoder.embedding.word.read(), ids_of)
        return ids


def _told_languages(batch: Batch) -> Tensor:
    """(T,) the language of each token, -1 where it is not told."""
    return batch.language_ids.where(batch.language_shown, -1)


def _read(batch: Batch) -> Tensor:
    """(P,) positions of the hidden states that are read: the compared sentences, then what is predicted."""
    sentences = torch.arange(batch.sentence_tokens, device=batch.predicted.device)
    return torch.cat([sentences, batch.predicted])


def initialise(module: nn.Module, config: EncoderConfig, seed: int, tensor: Axis = Axis()) -> None:
    """Fill matrices from a normal of ``initializer_std``; zero the tables' rows of padding, as in XLM-R, and languages.

    Biases are zero, the weights of norms one. Every matrix is drawn on the CPU in float32 from a generator of its
    own, keyed by ``seed`` and its name, so its values depend neither on the device nor on what else the model holds.
    Of one that is cut, every rank of ``tensor`` draws the whole, a part of it at a time, and keeps its own. On the
    meta device there is nothing to fill.
    """
    for name, parameter in module.named_parameters():
        if not parameter.is_meta:
            first_values(name, parameter, config, seed, tensor)


@torch.no_grad()
def first_values(
    name: str, parameter: Tensor, config: EncoderConfig, seed: int, tensor: Axis = Axis()
) -> None:
    """Give one parameter of a model the values that ``initialise`` gives it."""
    if name.endswith("language.weight"):
        parameter.zero_()
    elif parameter.ndim == 2:
        key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
        padding = config.pad_id if name.endswith(("word.weight", "position.weight")) else None
        _draw(parameter, generator, config.initializer_std, padding, tensor)
    elif name.endswith("bias"):
        parameter.zero_()
    elif name.endswith("norm.weight"):
        parameter.fill_(1.0)


def _draw(
    parameter: Tensor, generator: torch.Generator, std: float, padding: int | None, tensor: Axis
) -> None:
    """Draw the whole matrix in pieces of rows, zero its row ``padding``, and keep in ``parameter`` what is its own."""
    rows, width = whole_shape(parameter)
    # torch draws 16 numbers at a time, the last ones of a piece apart: so the numbers are those of one piece.
    step = max(16, DRAWN_AT_ONCE // width // 16 * 16)
    starts = list(range(0, max(0, rows - step) + 1, step))
    split = split_of(parameter)
    if split is not None:
        parameter.zero_()  # what fills it up
    for start, end in zip(starts, [*starts[1:], rows], strict=True):
        drawn = torch.empty(end - start, width).normal_(0.0, std, generator=generator)
        if padding is not None and start <= padding < end:
            drawn[padding - start] = 0.0
        if split is None:
            parameter[start:end] = drawn
        elif split.dimension == 1:
            parameter[start:end] = split.take(drawn, tensor.rank, tensor.size)
        else:
            for part in split.parts(tensor.rank, tensor.size):
                first, last = max(start, part.whole), min(end, part.whole + part.length)
                if first < last:
                    own = part.own + first - part.whole
                    parameter[own : own + last - first] = drawn[first - start : last - start]
