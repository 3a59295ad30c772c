"""One layer: self-attention and feed-forward, each added to its input and then normalised (post-norm).

    h = LayerNorm(x + Attention(x))        y = LayerNorm(h + W2 gelu(W1 h))

as in the Transformer (Vaswani et al. 2017), BERT and XLM-R, with the exact GELU.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import attention
from model.config import EncoderConfig
from model.layout import Layout
from model.rows import pick

LayerNormClass = Callable[..., nn.Module]
"""``(width, eps=...) -> module``: torch.nn.LayerNorm, or a fused one of the same parameters."""


class SelfAttention(nn.Module):
    """Multi-head attention within each document; queries, keys and values are one linear layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.shape = (3, -1, config.head_width)  # of as many heads as this rank has
        self.projection = nn.Linear(
            config.width, 3 * config.width
        )  # rows: queries, keys, values; each head by head
        self.output = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, layout: Layout, kept: Tensor | None = None) -> Tensor:
        """(R, D) -> (R, D), or (P, D) of the rows ``kept`` (P,)."""
        projected = self.projection(hidden).unflatten(-1, self.shape)  # (R, 3, H, W)
        attended = attention(projected, layout).flatten(1)
        mixed: Tensor = self.output(attended if kept is None else pick(attended, kept))
        return mixed


class FeedForward(nn.Module):
    """Two linear layers with the exact GELU in between."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.feed_forward)
        self.outer = nn.Linear(config.feed_forward, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, D) -> (R, D)."""
        out: Tensor = self.outer(F.gelu(self.inner(hidden)))
        return out


class Layer(nn.Module):
    """Attention, then feed-forward, both post-norm."""

    def __init__(self, config: EncoderConfig, layer_norm: LayerNormClass = nn.LayerNorm) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = layer_norm(config.width, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = layer_norm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, layout: Layout, kept: Tensor | None = None) -> Tensor:
        """(R, D) -> (R, D); or, all of which is read afterwards, (P, D) of the rows ``kept`` (P,), all different.

        Of the other rows only the keys and the values are needed, so what follows attention is not computed of them.
        """
        attended = self.attention(hidden, layout, kept)
        if kept is not None:
            hidden = pick(hidden, kept)
        hidden = self.attention_norm(hidden + self.dropout(attended))
        normalised: Tensor = self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))
        return normalised
