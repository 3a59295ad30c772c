"""Mixed-language alignment, its settings: which generators mix, how much, and the room that is set aside for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from data.back_translation import GateConfig
from data.keys import chances, hashed, key
from data.languages import PIVOT, written_without_spaces
from data.recipe import Section
from data.task import SPECIALS, TaskConfig, room_of_text

if TYPE_CHECKING:
    from data.lexicon import Lexicon

# Room for a mixed text, times the tokens of its original: translations are cut into more pieces than the words
# that they replace. Measured on the demo, so that about 3 texts in 100 are cut in every language: most where a
# word is one character or two, and in the language that has the longest dictionaries.
_MIXED_GROWTH = 1.25
_MIXED_GROWTH_OF_PIVOT = 1.4
_MIXED_GROWTH_WITHOUT_SPACES = 2.0
_MIXED_FURTHER = 5  # tokens; one word more or less tells in a short text


PSEUDO_TOKENS = "mixed_alignment.pseudo_tokens"  # the name of the generator's gate


class GeneratorsConfig(Section):
    """How often each generator is drawn, as a ratio; one that is left out is off."""

    dictionary: float = Field(0.0, ge=0)
    phrase: float = Field(0.0, ge=0)
    sentence: float = Field(0.0, ge=0)
    pseudo_tokens: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _some_are_on(self) -> GeneratorsConfig:
        if not self.weights():
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)} a weight")
        return self

    def weights(self) -> dict[str, float]:
        """Name -> weight of those that are on."""
        return {name: weight for name, weight in self.model_dump().items() if weight > 0}


class PseudoTokensConfig(Section):
    """When the model begins to write spans; until the gate is open the other generators are drawn."""

    gate: GateConfig = GateConfig()


class MixedAlignmentConfig(TaskConfig):
    """Mixed-language alignment: which generators mix, and how much of a text they replace.

    A record for which the drawn generator can give nothing goes to the next of the others, in an order drawn by
    their weights; one for which none can give anything is rejected.
    """

    generators: GeneratorsConfig = GeneratorsConfig(dictionary=1.0)
    replacement_rate: float = Field(0.7, gt=0, le=1)  # of the words, or phrases, that have translations
    span_rate: float = Field(0.5, gt=0, lt=1)  # of the tokens, by pseudo tokens
    both_mixed: float = Field(0.0, ge=0, le=1)  # the part of the pairs that compare two mixed forms of a text
    pseudo_tokens: PseudoTokensConfig = PseudoTokensConfig()

    @model_validator(mode="after")
    def _gate_has_effect(self) -> MixedAlignmentConfig:
        gated = self.pseudo_tokens.gate != GateConfig()
        if gated and not self.generates:
            raise ValueError(
                "pseudo_tokens.gate has no effect: the generator is off. Give generators.pseudo_tokens a weight, or"
                " leave the gate out"
            )
        if gated and len(self.generators.weights()) == 1:
            raise ValueError(
                "pseudo_tokens.gate: until it opens another generator has to mix, and none is on. Give one under"
                " generators a weight, or leave the gate out"
            )
        return self

    @property
    def generates(self) -> bool:
        """Whether the model writes tokens for it."""
        return self.generators.pseudo_tokens > 0

    @property
    def reads_rows(self) -> bool:
        """Sentences are taken from the translations of a text."""
        return self.generators.sentence > 0

    def lacks(self, lexicon: Lexicon | None) -> str | None:
        """A generator that reads word lists needs one that holds what it looks for."""
        on = self.generators.weights()
        if lexicon is None and ("dictionary" in on or "phrase" in on):
            return "needs word translations: name a file under 'lexicons', or leave it out."
        if lexicon is not None and "phrase" in on and not lexicon.has_phrases:
            return (
                "has the generator 'phrase' and no lexicon holds a phrase: induce one from your translations with"
                " python -m data.lexicon, or leave it out."
            )
        return None

    def serves(self, lexicon: Lexicon | None, languages: tuple[str, ...], kind: str) -> bool:
        """Whether some generator may find something: a word list of the language, or translations, or itself."""
        on = self.generators.weights()
        if self.generates:
            return True
        listed = lexicon is not None and all(lexicon.name_of(language) for language in languages)
        return (listed and ("dictionary" in on or "phrase" in on)) or (
            kind == "parallel" and "sentence" in on
        )


def both_sides_mixed(share: float, stream: str, records: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """Whether both sides of each of ``records`` (n,) are mixed in an epoch: the planner sets room aside for it."""
    if share == 0:
        return np.zeros(len(records), bool)
    return chances(hashed(key(seed, stream, epoch, "both mixed"), records)) < share


def room_of_text_and_mixed(
    lengths: Sequence[np.ndarray], maximum: int, languages: Sequence[str], config: TaskConfig
) -> np.ndarray:
    """Tokens of a text's document and of its mixed form's.

    Of two mixed forms where a second length is given that is not below zero.
    """
    (language,) = languages
    growth = _MIXED_GROWTH_OF_PIVOT if language == PIVOT else _MIXED_GROWTH
    if written_without_spaces(language):
        growth = _MIXED_GROWTH_WITHOUT_SPACES
    mixed = (lengths[0] * growth).astype(np.int64) + _MIXED_FURTHER + SPECIALS
    mixed = np.minimum(mixed, maximum)
    other = room_of_text(lengths, maximum, languages, config)
    if len(lengths) > 1:
        other = np.where(lengths[1] >= 0, mixed, other)
    return other + mixed
