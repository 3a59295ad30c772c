"""Whether pseudo tokens in a mixed text are really of a second language; pairs of whose texts that is not so.

A model that has learned little copies the text that it reads, or writes noise in the text's own language. An id that
was written for a text of language s, where language t was asked for, is of t if it

    1  is none of the ids of the text,
    2  holds letters, of a script that t is written in,
    3  stands in the training texts of t, at least four times as often as in those of s, in proportion to all of their
       tokens: so names, and what both spell alike, prove nothing. Where s is written in that script too, an id that
       is in no text of s counts as if it stood there once, so that the few texts of a language prove little.

A text holds two languages if one id is of the other: each is evidence of four to one, and what is left of the text
holds its own language by the choice of the spans (data/mixed_alignment.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batch import PackedBatch

_TELLING = 4.0  # times as often


class ScriptTables(NamedTuple):
    """The scripts of the ids and of the languages; see data/scripts.py."""

    of_ids: Tensor  # (V,) int64, 0 for an id without letters
    of_languages: Tensor  # (L, scripts) bool


class UseOfIds(NamedTuple):
    """How often languages use ids in their training texts."""

    shares: Tensor  # (L, V) float32, the part of a language's tokens that is this id
    least: Tensor  # (L,) float32, the part that a single token is

    @classmethod
    def of(cls, counts: np.ndarray, device: torch.device | str) -> UseOfIds:
        """From how often each id stands in the texts of each language, (L, V)."""
        totals = np.maximum(counts.sum(1), 1)
        shares = (counts / totals[:, None]).astype(np.float32)
        return cls(
            torch.from_numpy(shares).to(device), torch.from_numpy((1 / totals).astype(np.float32)).to(device)
        )


def documents_of(batch: PackedBatch, places: Tensor) -> Tensor:
    """The number of the document that each of ``places`` (k,) of the stream lies in."""
    return torch.searchsorted(batch.document_starts, places, right=True) - 1


def copied(generation: PackedBatch, ids: Tensor, vocabulary_size: int) -> Tensor:
    """(M,) bool: which ``ids`` (M,), written at the predicted positions, stand in the text they are written for."""
    starts, contexts = generation.document_starts, generation.context_lengths
    places = torch.arange(len(generation.token_ids), device=ids.device)
    document = documents_of(generation, places)
    in_context = places - starts[document] < contexts[document]
    # A number for each (document, id).
    read = (document * vocabulary_size + generation.token_ids)[in_context]
    return torch.isin(document[generation.predicted] * vocabulary_size + ids, read)


def of_the_language(generation: PackedBatch, ids: Tensor, scripts: ScriptTables, use: UseOfIds) -> Tensor:
    """(M,) bool: which ``ids`` (M,), written at the predicted positions, are of the language that was asked for."""
    starts = generation.document_starts[documents_of(generation, generation.predicted)]
    source, target = generation.language_ids[starts], generation.language_ids[generation.predicted]
    script = scripts.of_ids[ids]
    lettered = (script > 0) & scripts.of_languages[target, script]
    least = use.least[source] * scripts.of_languages[source, script]
    share = use.shares[target, ids]
    telling = (share > 0) & (share >= _TELLING * torch.maximum(use.shares[source, ids], least))
    return ~copied(generation, ids, len(scripts.of_ids)) & lettered & telling


def of_one_language(batch: PackedBatch, second: Tensor) -> Tensor:
    """(P,) bool: the pairs with a text whose slots hold no id of a second language; ``second`` (S,) says which do."""
    document = documents_of(batch, batch.slots)
    lacking = torch.zeros(len(batch.document_starts) - 1, dtype=torch.bool, device=second.device)
    lacking[document] = True
    lacking[document[second]] = False
    return lacking[batch.pairs].any(1)
