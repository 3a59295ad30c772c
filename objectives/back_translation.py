"""The first pass of back-translation: pseudo tokens written into a batch, and how healthy they are in each language.

BTMLM's loss is that of every masked task (objectives/masked_tokens.py); what is its own comes before.

    generation batch ──▶ ids of its placeholders ──▶ slots of the batch         without gradient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batch import PackedBatch
from model.generation import Decoding
from objectives.second_language import ScriptTables, UseOfIds, copied, documents_of, of_the_language

Generate = Callable[[PackedBatch, Decoding], Tensor]  # -> ids (M,)


class Health(IntEnum):
    """Columns of the health of pseudo tokens (L, len(Health)) int64, by the language that they are written in."""

    TOKENS = 0
    DISTINCT = 1  # different ids within each text, summed
    COPIED = 2  # ids that stand in the text that they are written for
    LETTERS = 3  # ids that hold letters
    IN_SCRIPT = 4  # those of a script in which the language is written


class Filled(NamedTuple):
    """A batch whose slots are filled."""

    batch: PackedBatch
    health: Tensor  # (L, len(Health)) of what was written
    second: Tensor | None  # (S,) bool, which slots hold the language that was asked for; None: nobody asks


@dataclass(frozen=True, eq=False)
class PseudoTokens:
    """How pseudo tokens are chosen in a run, and what is needed to judge them."""

    decoding: Decoding
    scripts: ScriptTables
    use: UseOfIds | None = None  # where mixed texts are judged by what was written

    def write(self, generate: Generate, batch: PackedBatch) -> Filled:
        """Fill the slots of ``batch``, and judge what was written.

        ``generate`` is called also where there is nothing to write: ZeRO-3 gathers weights in every forward, and a
        rank that left one out would leave the others waiting.
        """
        generation = batch.generation or PackedBatch.empty(batch.token_ids.device)
        ids = generate(generation, self.decoding)
        second = None
        if self.use is not None:
            second = of_the_language(generation, ids, self.scripts, self.use)
        return Filled(batch.filled(ids), health_of(generation, ids, self.scripts), second)


def health_of(generation: PackedBatch, ids: Tensor, scripts: ScriptTables) -> Tensor:
    """(L, len(Health)) int64 for the ``ids`` (M,) written at the predicted positions of ``generation``."""
    languages = generation.language_ids[generation.predicted]
    document = documents_of(generation, generation.predicted)
    size = len(scripts.of_ids)
    different = torch.unique(document * size + ids)  # a number for each (document, id)
    of_document = torch.zeros(len(generation.context_lengths), dtype=torch.int64, device=ids.device)
    of_document[document] = languages
    script = scripts.of_ids[ids]
    columns = {
        Health.TOKENS: (languages, torch.ones_like(ids)),
        Health.DISTINCT: (of_document[different // size], torch.ones_like(different)),
        Health.COPIED: (languages, copied(generation, ids, size).long()),
        Health.LETTERS: (languages, (script > 0).long()),
        Health.IN_SCRIPT: (languages, scripts.of_languages[languages, script].long()),
    }
    found = torch.zeros(len(Health), len(scripts.of_languages), dtype=torch.int64, device=ids.device)
    for column, (rows, values) in columns.items():
        found[column].index_add_(0, rows, values)
    return found.T


def health_figures(health: np.ndarray, languages: Sequence[str]) -> dict[str, float]:
    """The shares of a ``health`` (L, len(Health)) by name, of all and of each language that was written in.

    ``pseudo/distinct_1``: different ids of a text's pseudo tokens, ``pseudo/copy_rate``: those that stand in the text,
    ``pseudo/target_script_rate``: those in the right script, of those that hold letters.
    """
    figures: dict[str, float] = {}
    rows = {"": health.sum(axis=0)} | {f"/{name}": row for name, row in zip(languages, health, strict=True)}
    for suffix, row in rows.items():
        for name, part, whole in (
            ("distinct_1", Health.DISTINCT, Health.TOKENS),
            ("copy_rate", Health.COPIED, Health.TOKENS),
            ("target_script_rate", Health.IN_SCRIPT, Health.LETTERS),
        ):
            if row[whole]:
                figures[f"pseudo/{name}{suffix}"] = float(row[part] / row[whole])
    return figures
