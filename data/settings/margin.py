"""What a recipe may say of the adaptive margin: the form of its loss, and what becomes of a teacher's gap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from data.recipe import Section
from data.settings.task import TripletConfig

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
