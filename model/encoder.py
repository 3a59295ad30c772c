"""Encoder: token and position tables and a stack of layers, over a stream of packed documents.

The XLM-R family (Conneau et al. 2020) without what a packed stream makes unnecessary: no padding is computed,
and no document sees another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import EncoderConfig
from model.layer import Layer, LayerNormClass
from model.layout import make_layout


class Embedding(nn.Module):
    """Token vector + position vector, normalised."""

    def __init__(self, config: EncoderConfig, layer_norm: LayerNormClass = nn.LayerNorm) -> None:
        super().__init__()
        self.word = _table(config.vocabulary_size, config.width)
        self.position = _table(config.positions, config.width)
        self.norm = layer_norm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, token_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(R,), (R,) -> (R, D)."""
        embedded: Tensor = self.dropout(self.norm(self.word(token_ids) + self.position(position_ids)))
        return embedded


class Encoder(nn.Module):
    """Hidden states of a stream of documents.

    ``checkpoint_layers`` (may be set at any time) keeps only each layer's input for the backward and computes
    the rest again. ``layer_norm`` is a class with the interface of ``torch.nn.LayerNorm``.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        layer_norm: LayerNormClass = nn.LayerNorm,
        checkpoint_layers: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_layers = checkpoint_layers
        self.embedding = Embedding(config, layer_norm)
        self.layers = nn.ModuleList(Layer(config, layer_norm) for _ in range(config.layers))

    def forward(
        self, token_ids: Tensor, position_ids: Tensor, document_starts: Tensor, context_lengths: Tensor
    ) -> Tensor:
        """Return hidden states (T, D) of ``token_ids`` (T,) at ``position_ids`` (T,).

        Document n is ``[document_starts[n], document_starts[n + 1])``; its first ``context_lengths[n]``
        tokens see each other, the rest see the whole document. A last document of padding costs nothing and
        comes out zero.
        """
        # parameters() and not an attribute: ZeRO-3 would gather a parameter that is read as an attribute.
        dtype = next(self.parameters()).dtype
        layout = make_layout(
            token_ids, document_starts, context_lengths, pad_id=self.config.pad_id, dtype=dtype
        )
        hidden = self.embedding(layout.arrange(token_ids), layout.arrange(position_ids))
        for layer in self.layers:
            if self.checkpoint_layers and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, layout, use_reentrant=False)
            else:
                hidden = layer(hidden, layout)
        return layout.restore(hidden)


def _table(rows: int, width: int) -> nn.Embedding:
    """A table of zeros: ``pretraining.initialise`` fills it, and filling a large one twice takes seconds."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)
