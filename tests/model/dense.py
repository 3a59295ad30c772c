"""The encoder written a second time, one dense mask over everything: the oracle of the packed one.

Reads the parameters of a PretrainingModel by name and shares no code with it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.pretraining import PretrainingModel


def visible(starts: list[int], contexts: list[int], tokens: int) -> Tensor:
    """(T, T) bool: may the query (row) see the key (column)? One token after the other, by the definition."""
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for start, end, context in zip(starts[:-1], starts[1:], contexts, strict=True):
        for query in range(start, end):
            for key in range(start, end):
                mask[query, key] = key - start < context or query - start >= context
    return mask


def dense_attention(projected: Tensor, mask: Tensor) -> Tensor:
    """(T, 3, H, W), (T, T) -> (T, H, W)."""
    queries, keys, values = projected.permute(1, 2, 0, 3)
    scores = queries @ keys.transpose(1, 2) / projected.shape[-1] ** 0.5
    weights = torch.where(mask, scores, torch.finfo(scores.dtype).min).softmax(-1)
    return (weights @ values).transpose(0, 1)


def dense_hidden(model: PretrainingModel, token_ids: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
    """(T,), (T,), (T, T) -> hidden states (T, D)."""
    config, weights = model.config, dict(model.named_parameters())

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).rsqrt()
        return centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    words = weights["encoder.embedding.word.weight"][token_ids]
    places = weights["encoder.embedding.position.weight"][position_ids]
    hidden = norm("encoder.embedding.norm", words + places)
    for n in range(config.layers):
        layer = f"encoder.layers.{n}"
        projected = linear(f"{layer}.attention.projection", hidden)
        projected = projected.view(len(hidden), 3, config.heads, config.head_width)
        mixed = linear(f"{layer}.attention.output", dense_attention(projected, mask).flatten(1))
        hidden = norm(f"{layer}.attention_norm", hidden + mixed)
        inner = F.gelu(linear(f"{layer}.feed_forward.inner", hidden))
        hidden = norm(f"{layer}.feed_forward_norm", hidden + linear(f"{layer}.feed_forward.outer", inner))
    return hidden
