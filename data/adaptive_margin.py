"""The adaptive margin: a student separates positive from negative as far as a frozen teacher does.

Two tasks of one loss. ``adaptive_margin`` reads triplets (scored corpora) and spends tokens of its own.
``in_batch_margin`` rides on the pairs of the alignment tasks: every other pair's second text is a negative, and the
gaps come from the teacher's vectors.

Source: CN patent application of 2020-08-14 (adaptive difference loss against a pre-trained scoring model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from data.laid import Laid, Triplets, context_documents
from data.ragged import places, starts_of
from data.recipe import Section
from data.task import SPECIALS, Made, Material, Part, Records, TaskConfig, ends_of
from data.triplet_alignment import TripletConfig

_BOUND_OF_RUNNING = 0.3  # of the margins


class MarginConfig(Section):
    """The form of the loss, and what becomes of a teacher's gap: clip(scale * gap + offset, minimum, maximum).

    ``scale: running`` is sd of the student's gaps / sd of the teacher's over the last steps, 1 in the first.
    ``fixed`` does not ask the teacher: its margin is the offset.

    A running scale takes the student's errors for spread: what pushes the gaps apart widens it, so one-sided forms
    would raise their own margins beyond what cosines have. So with it they ask for 0.3 at most (LaBSE's margin), unless
    ``maximum`` is another, or null for none. ``mse`` pulls back what is too wide by itself.
    """

    form: Literal["hinge", "squared_hinge", "softplus", "fixed", "mse"] = "hinge"
    scale: float | Literal["running"] = "running"
    offset: float = 0.0
    minimum: float | None = None
    maximum: float | None = None
    tau: float = Field(0.05, gt=0)  # of softplus: how far from its corner it is round

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "maximum" in given or given.get("form") in ("fixed", "mse"):
            return given
        return (
            {**given, "maximum": _BOUND_OF_RUNNING} if given.get("scale", "running") == "running" else given
        )

    @model_validator(mode="after")
    def _fits_together(self) -> MarginConfig:
        problems = []
        if self.form == "fixed" and self.offset <= 0:
            problems.append("form 'fixed' needs its margin: give an offset above 0")
        if isinstance(self.scale, float | int) and self.scale < 0:
            problems.append(
                f"scale {self.scale}: below 0 the student would learn the opposite of the teacher"
            )
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            problems.append(f"minimum {self.minimum} is above maximum {self.maximum}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class AdaptiveMarginConfig(TripletConfig, MarginConfig):
    """Triplets of scored corpora."""

    teacher: str | None = None  # folder of data.teach whose scores stand in for those of the corpora


class InBatchMarginConfig(MarginConfig):
    """A further loss on the pairs of translation_alignment and mixed_alignment."""

    teacher: str  # folder of data.teach with vectors
    loss_weight: float = Field(1.0, ge=0)


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
