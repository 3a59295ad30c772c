"""The section ``cleaning`` of a recipe, for all corpora, and of one corpus, whose keys go before."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data.recipe import Alternatives, Section


class LanguageRule(Section):
    """Texts that are in another language than they are said to be, by an identifier (py3langid)."""

    probability: float = Field(0.01, gt=0, lt=1)  # a text whose language has less than this is rejected
    letters: int = Field(20, ge=1)  # shorter texts are not judged
    maximum_wrong: float = Field(
        0.5, gt=0, le=1
    )  # a corpus with a larger part of a language wrong is refused


class CleaningConfig(Alternatives):
    """What is done to the records of a corpus. Held-out corpora know of `unicode` and of their own section alone."""

    unicode: Literal["nfc", "off"] | None = (
        None  # texts are put into this form; ids are in the tokenizer's own
    )
    length_ratio: Annotated[float, Field(gt=1)] | Literal["off"] | None = (
        None  # parallel: a text so many times as long as another
    )
    language: LanguageRule | Literal["off"] | None = None  # `language: on` takes the rule as it stands
    duplicates: Literal["exact", "near", "off"] | None = (
        None  # records seen before, in this corpus or an earlier one
    )
    held_out: Literal["exact", "near", "off"] | None = None  # texts that also stand in a held-out corpus
    alignment: Literal["on", "off"] | None = None  # text, parallel: off reads files that seem to slide apart

    @model_validator(mode="before")
    @classmethod
    def _on_is_the_rule_as_it_stands(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("language") == "on":
            return {**value, "language": {}}
        return value


def effective(whole: CleaningConfig | None, own: CleaningConfig | None, held_out: bool) -> CleaningConfig:
    """What holds for one corpus: each key of its own section, else that of the section for all. What is off is None."""
    given = {} if whole is None else _set(whole)
    if held_out:
        given = {name: value for name, value in given.items() if name in ("unicode", "alignment")}
    given |= {} if own is None else _set(own)
    return CleaningConfig.model_construct(
        **{name: None if value == "off" and name != "alignment" else value for name, value in given.items()}
    )


def _set(section: CleaningConfig) -> dict[str, Any]:
    return {
        name: getattr(section, name)
        for name in CleaningConfig.model_fields
        if getattr(section, name) is not None
    }
