"""The names of our weights at Hugging Face: XLM-RoBERTa both ways, BERT with XLM-R's vocabulary in.

ours                                     XLM-RoBERTa                               BERT
encoder.embedding.word                   embeddings.word_embeddings                the same
encoder.embedding.position               embeddings.position_embeddings            row i is our row i + 2
                                         + row 0 of token_type_embeddings          the same
encoder.layers.N.attention.projection    encoder.layer.N.attention.self.query, key, value, one below the other
head                                     lm_head                                   cls.predictions
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from model.config import EncoderConfig

FIRST_POSITION = 2  # XLM-R's first position, pad_id + 1
FAMILIES = ("xlm-roberta", "bert")

# Ours -> theirs, of modules that differ in name alone.
_EMBEDDING = {"encoder.embedding.norm": "embeddings.LayerNorm"}
_LAYER = {
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.inner": "intermediate.dense",
    "feed_forward.outer": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
_HEAD = {
    "xlm-roberta": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
    "bert": {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
}
_PREFIX = {"xlm-roberta": "roberta.", "bert": "bert."}  # of the encoder inside a model with a head
_PROJECTION = ("query", "key", "value")


class ModelError(ValueError):
    """A folder or weights that can not be read or written as a model; the message holds the remedy."""


def _modules(config: EncoderConfig) -> dict[str, str]:
    """Ours -> theirs of the encoder's modules that differ in name alone."""
    layers = {
        f"encoder.layers.{n}.{ours}": f"encoder.layer.{n}.{theirs}"
        for n in range(config.layers)
        for ours, theirs in _LAYER.items()
    }
    return _EMBEDDING | layers


def from_theirs(
    tensors: Mapping[str, Tensor], family: str, config: EncoderConfig
) -> Iterator[tuple[str, Tensor]]:
    """Rename the tensors of a ``family`` checkpoint, one after the other; ModelError where one is missing or of
    another shape.

    What has no place in ours is left out (a pooler, a classifier), and the head where there is none.
    """
    source = {_plain(name, _PREFIX[family]): name for name in tensors}
    width, inner = config.width, config.feed_forward
    weights = {".inner": (inner, width), ".outer": (width, inner), ".output": (width, width)}

    def take(name: str, *shape: int) -> Tensor:
        if name not in source:
            raise ModelError(f"the weights hold no {name}; are all files of the model there?")
        found = tensors[source[name]]
        if tuple(found.shape) != shape:
            raise ModelError(f"{name} is {tuple(found.shape)}, the configuration says {shape}")
        return found.float()

    def module(ours: str, theirs: str, weight: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
        yield f"{ours}.weight", take(f"{theirs}.weight", *weight)
        yield f"{ours}.bias", take(f"{theirs}.bias", weight[0])

    table = "embeddings.word_embeddings.weight", config.vocabulary_size, width
    yield "encoder.embedding.word.weight", take(*table)
    unused_rows = FIRST_POSITION if family == "bert" else 0
    rows = take("embeddings.position_embeddings.weight", config.positions - unused_rows, width)
    positions = torch.cat([rows.new_zeros(unused_rows, width), rows])
    types = "embeddings.token_type_embeddings.weight"
    if types in source:
        # Every token of ours is of type 0, and every token has a position: one table holds both.
        positions = positions + take(types, len(tensors[source[types]]), width)[0]
    yield "encoder.embedding.position.weight", positions

    for ours, theirs in _modules(config).items():
        yield from module(ours, theirs, weights.get(ours[ours.rindex(".") :], (width,)))
    for n in range(config.layers):
        parts = [f"encoder.layer.{n}.attention.self.{part}" for part in _PROJECTION]
        ours = f"encoder.layers.{n}.attention.projection"
        yield f"{ours}.weight", torch.cat([take(f"{part}.weight", width, width) for part in parts])
        yield f"{ours}.bias", torch.cat([take(f"{part}.bias", width) for part in parts])

    head = _HEAD[family]
    if head["bias"] in source:
        yield from module("head.dense", head["dense"], (width, width))
        yield from module("head.norm", head["norm"], (width,))
        bias = take(head["bias"], config.vocabulary_size)
        yield "head.bias", bias
        decoder = head["bias"].replace("bias", "decoder")
        for copied, original in (
            (f"{decoder}.weight", lambda: take(*table)),
            (f"{decoder}.bias", lambda: bias),
        ):
            if copied in source and not torch.equal(take(copied, *original().shape), original()):
                raise ModelError(
                    f"{copied} differs from the token table; this encoder's output table is tied to it"
                )


def to_theirs(state_dict: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Our weights under the names of XLMRobertaForMaskedLM, on the CPU; ModelError where one is missing."""
    try:
        word, position = (state_dict[f"encoder.embedding.{table}.weight"] for table in ("word", "position"))
        theirs = {
            "roberta.embeddings.word_embeddings.weight": word,
            "roberta.embeddings.position_embeddings.weight": position,
            "roberta.embeddings.token_type_embeddings.weight": position.new_zeros(1, config.width),
            "lm_head.bias": state_dict["head.bias"],
        }
        modules = {ours: f"roberta.{name}" for ours, name in _modules(config).items()}
        modules |= {f"head.{part}": _HEAD["xlm-roberta"][part] for part in ("dense", "norm")}
        for kind in ("weight", "bias"):
            for ours, name in modules.items():
                theirs[f"{name}.{kind}"] = state_dict[f"{ours}.{kind}"]
            for n in range(config.layers):
                thirds = state_dict[f"encoder.layers.{n}.attention.projection.{kind}"].split(config.width)
                for part, third in zip(_PROJECTION, thirds, strict=True):
                    theirs[f"roberta.encoder.layer.{n}.attention.self.{part}.{kind}"] = third
    except KeyError as error:
        raise ModelError(
            f"the weights hold no {error.args[0]}: not those of a whole PretrainingModel"
        ) from error
    return {name: tensor.detach().cpu().contiguous() for name, tensor in theirs.items()}


def _plain(name: str, prefix: str) -> str:
    """Without the prefix of a model with a head; old checkpoints call a norm's parameters gamma and beta."""
    name = name.removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
