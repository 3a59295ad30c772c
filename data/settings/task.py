"""What a recipe may say of one task: what all of them have, and the settings of those that are a class or two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from data.recipe import Section

if TYPE_CHECKING:  # a recipe is checked without it
    from data.lexicon import Lexicon


class TaskConfig(Section):
    """What every task has: its part of its side's tokens, and the factor of its loss."""

    weight: float = Field(1.0, gt=0)
    loss_weight: float = Field(1.0, ge=0)

    def lacks(self, lexicon: Lexicon | None) -> str | None:
        """What is missing for the task, with the remedy; None if nothing is."""
        return None

    @property
    def reads_rows(self) -> bool:
        """Whether it gets the other texts of a record's row too, after those that it reads."""
        return False

    def serves(self, lexicon: Lexicon | None, languages: tuple[str, ...], kind: str) -> bool:
        """Whether texts of these languages in a corpus of this kind can become examples at all."""
        return True


class MaskedConfig(TaskConfig):
    """MMLM and TLM: the rate at which tokens are predicted."""

    mask_rate: float = Field(0.15, gt=0, lt=1)


class CrossAttentionMaskedConfig(TaskConfig):
    """CAMLM: the rate is per side; chosen tokens are always shown as <mask>."""

    mask_rate: float = Field(0.25, gt=0, lt=1)


class TranslationAlignmentConfig(TaskConfig):
    """How many texts of a multi-way row stand in an example, each compared with each: 2 is the pair alone.

    With more, a text is encoded once and compared several times. The further texts are drawn evenly from the row.
    """

    texts: int = Field(2, ge=2, le=16)


class TripletConfig(TaskConfig):
    """Triplets of scored corpora."""

    negatives: int = Field(4, ge=1, le=64)  # of a triplet that are used, the first ones


class DecodingConfig(Section):
    """How pseudo tokens are chosen: the best id, or one drawn from the ``top_k`` best."""

    top_k: int = Field(1, ge=1)
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _has_effect(self) -> DecodingConfig:
        if self.top_k == 1 and self.temperature != 1:
            raise ValueError(
                "temperature has no effect on the best id: set top_k to 2 or more, or leave it out"
            )
        return self


class GateConfig(Section):
    """What opens the task: CAMLM's accuracy at the last evaluation, or a number of tokens, whichever comes first.

    Until then its budget is spent on MMLM. Without either it is open from the start.
    """

    camlm_accuracy: float | None = Field(None, gt=0, lt=1)
    tokens: int | None = Field(None, ge=1, lt=2**62)


class BackTranslationConfig(TaskConfig):
    """BTMLM: the masked part of x, and how many pseudo tokens stand beside it."""

    mask_rate: float = Field(0.15, gt=0, lt=1)
    pseudo_ratio: float = Field(0.5, gt=0, le=4)  # pseudo tokens for each token of x, at least one in all
    decode: DecodingConfig = DecodingConfig()
    restrict_to_language: bool = False  # only ids that occur in the training texts of the language
    gate: GateConfig = GateConfig()
