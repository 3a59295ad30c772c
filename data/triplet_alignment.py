"""Contrastive alignment on triplets: anchor and positive are a pair, the negatives are keys that nobody is to find.

What is mined as hard to tell from the positive (data/mine.py) stands in the pool of the step beside all other pairs:
every query of the step, whatever its task, is pushed away from it. A negative that says the same as a pair's texts has
their group and is not counted against them.

Source: hard negatives as further keys, Karpukhin et al. 2020 (DPR); sentence-transformers trains on triplets this way.
"""

from __future__ import annotations

import numpy as np

from data.laid import Laid, context_documents
from data.ragged import row_of_each, starts_of
from data.settings.task import TaskConfig
from data.task import SPECIALS, Made, Material, Part, Records, ends_of


def make_triplet_alignment(records: Records, material: Material, config: TaskConfig) -> Made:
    """[anchor], [positive] and [each negative]; the scores of the corpus are not looked at."""
    counts, firsts = records.counts, starts_of(records.counts)
    texts = records.texts.cut(material.maximum_tokens - SPECIALS)
    negatives = np.flatnonzero(np.arange(int(counts.sum())) - firsts[row_of_each(counts)] >= 2)
    every = np.arange(len(counts))
    laid = Laid(
        streams=records.draws.streams,
        documents=counts,
        **context_documents(texts.ids, texts.lengths, texts.languages, ends_of(material.tokenizer)),
        pairs=np.stack([firsts, firsts + 1], 1),
        pair_examples=every,
        groups=texts.groups[firsts],
        negatives=negatives,
        negative_groups=texts.groups[negatives],
    )
    return [Part(laid, every)]
