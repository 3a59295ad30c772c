"""The adaptive margin: a student separates positive from negative as far as a frozen teacher does.

Two tasks of one loss. ``adaptive_margin`` reads triplets (scored corpora) and spends tokens of its own.
``in_batch_margin`` rides on the pairs of the alignment tasks: every other pair's second text is a negative, and the
gaps come from the teacher's vectors.

Source: CN patent application of 2020-08-14 (adaptive difference loss against a pre-trained scoring model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from data.packing import Example, Triplet
from data.recipe import Section
from data.task import SPECIALS, Draw, Made, Material, TaskConfig, TextSegment, context_document, wrapped

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


class AdaptiveMarginConfig(TaskConfig, MarginConfig):
    """Triplets of scored corpora."""

    negatives: int = Field(4, ge=1, le=64)  # of a triplet that are used, the first ones
    teacher: str | None = None  # folder of data.teach whose scores stand in for those of the corpora


class InBatchMarginConfig(MarginConfig):
    """A further loss on the pairs of translation_alignment and mixed_alignment."""

    teacher: str  # folder of data.teach with vectors
    loss_weight: float = Field(1.0, ge=0)


def make_adaptive_margin(
    segments: Sequence[TextSegment], draw: Draw, material: Material, config: TaskConfig
) -> Made:
    """[anchor], [positive] and [each negative], with the teacher's gaps; nothing where it gave no scores."""
    assert isinstance(config, AdaptiveMarginConfig)
    scores = np.array([segment.score for segment in segments[1:]])
    gaps = scores[0] - scores[1:]
    if config.form == "fixed":
        gaps = np.zeros(len(gaps))
    elif not np.isfinite(gaps).all():
        return Made(None)
    documents = [
        context_document(
            wrapped(segment.ids[: material.maximum_tokens - SPECIALS], material.tokenizer), segment.language
        )
        for segment in segments
    ]
    triplet = Triplet(0, 1, range(2, len(documents)), gaps.tolist())
    return Made(Example(draw.stream, documents, triplets=[triplet]))
