"""What reads the hidden states: the masked-token head, sentence vectors, and their temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import EncoderConfig
from model.layer import LayerNormClass

INVERSE_TEMPERATURE_RANGE = (1.0, 100.0)

Read = TypeVar("Read")


class MaskedTokenHead(nn.Module):
    """XLM-R's output head: dense, exact GELU, LayerNorm, then the tied token table with its own bias."""

    def __init__(self, config: EncoderConfig, layer_norm: LayerNormClass = nn.LayerNorm) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = layer_norm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))

    def features(self, hidden: Tensor) -> Tensor:
        """(M, D) hidden states -> (M, D) what is compared with the rows of the token table."""
        features: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return features

    def forward(self, hidden: Tensor, table: Tensor, read: Callable[[Tensor, Tensor, Tensor], Read]) -> Read:
        """What ``read`` makes of the features (M, D) of hidden states (M, D), the token table (V, D) and the bias (V,).

        Handed in, because ZeRO-3 has the bias whole only within this forward.
        """
        return read(self.features(hidden), table, self.bias)

    def logits(self, hidden: Tensor, table: Tensor) -> Tensor:
        """(M, D), (V, D) -> (M, V): for reading predictions; training never holds them."""
        return F.linear(self.features(hidden), table, self.bias)


def sentence_vectors(hidden: Tensor, document_starts: Tensor) -> Tensor:
    """Mean over each document's tokens, all of them, special tokens included; unit length; float32 at least.

    ``hidden`` (tokens, D) holds exactly the documents of ``document_starts`` (N + 1,). The same as
    sentence-transformers' mean pooling and normalisation of a padded batch.
    """
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    lengths = document_starts.diff()
    means = torch.segment_reduce(wide, "mean", lengths=lengths, unsafe=True)
    return F.normalize(means, dim=-1)


class InverseTemperature(nn.Module):
    """The factor 1 / tau of the similarities, kept as its logarithm within [1, 100]; learned or fixed."""

    def __init__(self, initial_temperature: float, learned: bool) -> None:
        super().__init__()
        low, high = INVERSE_TEMPERATURE_RANGE
        if not low <= 1 / initial_temperature <= high:
            raise ValueError(f"temperature {initial_temperature} is not within [{1 / high}, {1 / low}]")
        self.initial = -math.log(initial_temperature)
        # Shape (1,): DeepSpeed's partitions are made of vectors.
        self.logarithm = nn.Parameter(torch.tensor([self.initial])) if learned else None

    def forward(self, like: Tensor) -> Tensor:
        """() float32 (at least) on the device of ``like``."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        if self.logarithm is None:
            return torch.tensor(math.exp(self.initial), dtype=dtype, device=like.device)
        low, high = (math.log(bound) for bound in INVERSE_TEMPERATURE_RANGE)
        clamped: Tensor = _Clamp.apply(self.logarithm[0].to(dtype), low, high)
        return clamped.exp()


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient vanishes only where a step would lead further out, so a value can come back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = (low, high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (value,), (low, high) = ctx.saved_tensors, ctx.bounds
        outward = ((value <= low) & (gradients[0] > 0)) | ((value >= high) & (gradients[0] < 0))
        return gradients[0].masked_fill(outward, 0), None, None
