"""The section ``tasks`` of a recipe: which tasks there are, the loss of each, and the gates that they wait for."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import model_validator

from data.recipe import Section
from data.settings.margin import AdaptiveMarginConfig, InBatchMarginConfig
from data.settings.mixed_alignment import PSEUDO_TOKENS, MixedAlignmentConfig
from data.settings.task import (
    BackTranslationConfig,
    CrossAttentionMaskedConfig,
    MaskedConfig,
    TaskConfig,
    TranslationAlignmentConfig,
    TripletConfig,
)

Loss = Literal["masked", "alignment", "margin"]
# Every task with records of its own, in the order in which streams and plans number them.
LOSSES: dict[str, Loss] = {
    "mmlm": "masked",
    "tlm": "masked",
    "camlm": "masked",
    "translation_alignment": "alignment",
    "mixed_alignment": "alignment",
    "adaptive_margin": "margin",
    "triplet_alignment": "alignment",
    "btmlm": "masked",
}


class TasksConfig(Section):
    """The tasks of a recipe; one that is left out is off."""

    mmlm: MaskedConfig | None = None
    tlm: MaskedConfig | None = None
    camlm: CrossAttentionMaskedConfig | None = None
    translation_alignment: TranslationAlignmentConfig | None = None
    mixed_alignment: MixedAlignmentConfig | None = None
    btmlm: BackTranslationConfig | None = None
    adaptive_margin: AdaptiveMarginConfig | None = None
    triplet_alignment: TripletConfig | None = None
    in_batch_margin: InBatchMarginConfig | None = None  # rides on the pairs of the alignment tasks

    @model_validator(mode="after")
    def _has_pairs_to_ride_on(self) -> TasksConfig:
        if self.in_batch_margin is not None and not (self.translation_alignment or self.mixed_alignment):
            raise ValueError(
                "in_batch_margin rides on the pairs of translation_alignment or mixed_alignment, and neither is on"
            )
        return self

    @property
    def generates(self) -> bool:
        """Whether the model writes pseudo tokens for some task."""
        mixed = self.mixed_alignment
        return self.btmlm is not None or (mixed is not None and mixed.generates)

    def enabled(self) -> dict[str, TaskConfig]:
        """Name -> settings of the tasks that are on and have records of their own, in the order of the table."""
        return {name: getattr(self, name) for name in LOSSES if getattr(self, name) is not None}

    @property
    def aligns(self) -> bool:
        """Whether pairs are compared with each other for some task."""
        return any(LOSSES[name] == "alignment" for name in self.enabled())

    def triplets(self) -> dict[str, TripletConfig]:
        """Name -> settings of those that read triplets."""
        return {name: each for name, each in self.enabled().items() if isinstance(each, TripletConfig)}


class Gate(Protocol):
    """What opens a task: the held-out accuracy of CAMLM, tokens planned, or whichever comes first."""

    camlm_accuracy: float | None
    tokens: int | None


def gates_of(tasks: TasksConfig) -> dict[str, Gate]:
    """The gates of the tasks that are on, and of a generator; one that asks for nothing is open.

    While the generator's is shut its task goes on with the others, so that it changes no share.
    """
    found = {name: getattr(settings, "gate", None) for name, settings in tasks.enabled().items()}
    mixed = tasks.enabled().get("mixed_alignment")
    if isinstance(mixed, MixedAlignmentConfig):
        found[PSEUDO_TOKENS] = mixed.pseudo_tokens.gate
    return {
        name: gate
        for name, gate in found.items()
        if gate is not None and (gate.camlm_accuracy is not None or gate.tokens is not None)
    }
