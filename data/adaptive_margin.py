"""The adaptive margin: a student separates positive from negative as far as a frozen teacher does.

Two tasks of one loss. ``adaptive_margin`` reads triplets (scored corpora) and spends tokens of its own.
``in_batch_margin`` rides on the pairs of the alignment tasks: every other pair's second text is a negative, and the
gaps come from the teacher's vectors.

Source: CN patent application of 2020-08-14 (adaptive difference loss against a pre-trained scoring model).
"""

from __future__ import annotations

import numpy as np

from data.laid import Laid, Triplets, context_documents
from data.ragged import places, starts_of
from data.settings.margin import AdaptiveMarginConfig
from data.settings.task import TaskConfig
from data.task import SPECIALS, Made, Material, Part, Records, ends_of


def make_adaptive_margin(records: Records, material: Material, config: TaskConfig) -> Made:
    """[anchor], [positive] and [each negative], with the teacher's gaps; nothing where it gave no scores."""
    assert isinstance(config, AdaptiveMarginConfig)
    counts, firsts = records.counts, starts_of(records.counts)
    width = max(0, int(counts.max(initial=2)) - 2)
    negatives = firsts[:, None] + 2 + np.arange(width)  # numbers of texts, (n, K)
    absent = np.arange(width) >= counts[:, None] - 2
    negatives[absent] = 0
    scores = records.texts.scores
    gaps = scores[firsts + 1][:, None] - scores[negatives]
    gaps[absent] = 0.0
    kept = np.arange(len(counts))
    if config.form == "fixed":
        gaps[:] = 0.0
    else:
        kept = np.flatnonzero(np.isfinite(gaps).all(1))
    counts, of_kept = counts[kept], places(firsts[kept], counts[kept])
    texts = records.texts.taken(of_kept).cut(material.maximum_tokens - SPECIALS)
    firsts = starts_of(counts)
    laid = Laid(
        streams=records.draws.streams[kept],
        documents=counts,
        **context_documents(texts.ids, texts.lengths, texts.languages, ends_of(material.tokenizer)),
        triplets=Triplets(
            firsts,
            firsts + 1,
            np.where(absent[kept], -1, firsts[:, None] + 2 + np.arange(width)),
            gaps[kept].astype(np.float32),
        ),
        triplet_examples=np.arange(len(kept)),
    )
    return [Part(laid, kept)]
