"""Encoder: token, position and language tables and a stack of layers, over a stream of packed documents.

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
from model.parallel.collectives import joined, own_rows
from model.parallel.topology import Axis
from model.rows import pick
from model.tied import TokenTable


class Embedding(nn.Module):
    """Token vector + position vector, and in training the language's vector where it is told; normalised.

    An exported model has no table of languages: it computes what this one does where no language is told.
    """

    def __init__(self, config: EncoderConfig, layer_norm: LayerNormClass = nn.LayerNorm) -> None:
        super().__init__()
        self.word = TokenTable.from_pretrained(_zeros(config.vocabulary_size, config.width), freeze=False)
        self.position = _table(config.positions, config.width)
        self.language = _table(config.languages, config.width) if config.languages else None
        self.norm = layer_norm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, token_ids: Tensor, position_ids: Tensor, language_ids: Tensor | None = None) -> Tensor:
        """(R,), (R,), (R,) -> (R, D); a language below zero is not told, nor is any where ``language_ids`` is None."""
        together = self.word(token_ids) + self.position(position_ids)
        if self.language is not None and language_ids is not None:
            # Multiplied, not chosen: the table is in the graph of every forward, as ZeRO-3 needs it.
            told = (language_ids >= 0)[:, None].to(together.dtype)
            together = together + self.language(language_ids.clamp(min=0)) * told
        embedded: Tensor = self.dropout(self.norm(together))
        return embedded


class Encoder(nn.Module):
    """Hidden states of a stream of documents.

    ``checkpoint_layers`` (may be set at any time) keeps only each layer's input for the backward and computes
    the rest again. ``layer_norm`` is a class with the interface of ``torch.nn.LayerNorm``. ``rows`` are ranks
    over which the rows between the layers are spread (model/parallel/plan.py).
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        layer_norm: LayerNormClass = nn.LayerNorm,
        checkpoint_layers: bool = False,
        rows: Axis = Axis(),
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_layers = checkpoint_layers
        self.rows = rows
        self.embedding = Embedding(config, layer_norm)
        self.layers = nn.ModuleList(Layer(config, layer_norm) for _ in range(config.layers))

    def forward(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        document_starts: Tensor,
        context_lengths: Tensor,
        language_ids: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states (T, D) of ``token_ids`` (T,) at ``position_ids`` (T,); with ``read`` (P,) those (P, D).

        ``language_ids`` (T,) are numbers of languages, below zero where the language is not told; None: nowhere.
        ``read`` are positions in the stream, all different, none in its padding: the last layer computes only these
        beyond its attention, which is five sixths of a layer's products.

        Document n is ``[document_starts[n], document_starts[n + 1])``; its first ``context_lengths[n]``
        tokens see each other, the rest see the whole document. A last document of padding costs nothing and
        comes out zero.
        """
        # parameters() and not an attribute: ZeRO-3 would gather a parameter that is read as an attribute.
        dtype = next(self.parameters()).dtype
        layout = make_layout(
            token_ids, document_starts, context_lengths,
            pad_id=self.config.pad_id, dtype=dtype, multiple=self.rows.size,
        )  # fmt: skip
        hidden = self.embedding(
            layout.arrange(token_ids),
            own_rows(layout.arrange(position_ids), self.rows),
            None if language_ids is None else own_rows(layout.arrange(language_ids), self.rows),
        )
        # Rows that are spread over ranks all go on: those that are read may lie on one rank.
        kept = layout.rows_of(read) if read is not None and self.rows.size == 1 else None
        last = self.layers[-1]
        for layer in self.layers:
            arguments = (hidden, layout, kept if layer is last else None)
            if self.checkpoint_layers and torch.is_grad_enabled():
                hidden = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                hidden = layer(*arguments)
        if kept is not None:
            return hidden
        states = layout.restore(joined(hidden, self.rows))
        return states if read is None else pick(states, read)


def _table(rows: int, width: int) -> nn.Embedding:
    return nn.Embedding.from_pretrained(_zeros(rows, width), freeze=False)


def _zeros(rows: int, width: int) -> Tensor:
    """What ``pretraining.initialise`` fills: to fill a large table twice takes seconds."""
    return torch.zeros(rows, width)
