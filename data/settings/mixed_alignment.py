"""What a recipe may say of mixed-language alignment: which generators mix, how much, and when the model begins to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from data.recipe import Section
from data.settings.task import GateConfig, TaskConfig

if TYPE_CHECKING:  # a recipe is checked without it
    from data.lexicon import Lexicon

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
