"""The sampling section of a recipe: budgets, temperatures, floors, caps, and the stages in which they change.

How far a run is, is counted in tokens planned: they are known before a step is made, and the same on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, model_validator

from data.config import Name
from data.recipe import Section

Exponent = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=0, lt=2**62)]
Share = Annotated[float, Field(ge=0, le=1)]
Epochs = Annotated[int, Field(ge=1)]


class BudgetsConfig(Section):
    """How the tokens are split between bilingual and monolingual tasks, as a ratio."""

    bilingual: float = Field(1.0, ge=0)
    monolingual: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _of_something(self) -> BudgetsConfig:
        if self.bilingual + self.monolingual <= 0:
            raise ValueError("both budgets are 0: give one of them a part of the tokens")
        return self


class AnnealedTemperature(Section):
    """A temperature that goes from ``start`` to ``end`` in a straight line over so many tokens, and stays there."""

    start: Exponent
    end: Exponent
    tokens: int = Field(ge=1, lt=2**62)


def _written_as(value: Any) -> str:
    if isinstance(value, (Mapping, Section)):
        return "mapping"
    return "list" if isinstance(value, (list, tuple)) else "number"


# A number; {start, end, tokens}; or points [[tokens, temperature], ...] with straight lines between them.
Temperature = Annotated[
    Annotated[Exponent, Tag("number")]
    | Annotated[AnnealedTemperature, Tag("mapping")]
    | Annotated[tuple[tuple[Tokens, Exponent], ...], Field(min_length=1), Tag("list")],
    Discriminator(_written_as),
]
# One share for every language, or language -> share.
Floor = Annotated[
    Annotated[Share, Tag("number")] | Annotated[dict[Name, Share], Tag("mapping")], Discriminator(_written_as)
]
# One cap for every corpus, or corpus -> cap.
Caps = Annotated[
    Annotated[Epochs, Tag("number")] | Annotated[dict[Name, Epochs], Tag("mapping")],
    Discriminator(_written_as),
]


class StageConfig(Section):
    """A stretch of the run and what changes in it; what it does not name stays as it was in the stage before.

    Points of a temperature count from the start of the stage that names them.
    """

    tokens: int | None = Field(None, ge=1, lt=2**62)  # how long; the last stage lasts to the end of the run
    budgets: BudgetsConfig | None = None
    weights: dict[Name, Annotated[float, Field(ge=0)]] = {}  # task -> weight in place of its own; 0: off
    language_temperature: Temperature | None = None
    pair_temperature: Temperature | None = None
    language_floor: Floor | None = None

    @model_validator(mode="after")
    def _sound(self) -> StageConfig:
        _check(self.language_temperature, self.pair_temperature, self.language_floor)
        return self


class SamplingConfig(Section):
    """How often a language is seen: its share is proportional to (its tokens) ** temperature.

    Source: XLM-R (Conneau et al., 2020), alpha 0.3; separately for languages and for pairs of languages. mmBERT
    (Marone et al., 2025) anneals it from 0.7 over 0.5 to 0.3.
    """

    budgets: BudgetsConfig = BudgetsConfig()
    language_temperature: Temperature = 0.3
    pair_temperature: Temperature = 0.3
    pairs: Literal["all"] | str = "all"  # every pair of languages, or only those with this language
    # The least part of a task's tokens that is in a language; a pair counts for both of its languages.
    language_floor: Floor = 0.0
    # So often a task reads a record of a corpus, then no more; the default is without end.
    maximum_epochs: Caps | None = None
    stages: tuple[StageConfig, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> SamplingConfig:
        _check(self.language_temperature, self.pair_temperature, self.language_floor)
        *first, last = self.stages or (StageConfig(),)
        for number, stage in enumerate(first, start=1):
            if stage.tokens is None:
                raise ValueError(f"stage {number} of {len(self.stages)} needs tokens: how long it lasts")
        if last.tokens is not None:
            raise ValueError("the last stage lasts to the end of the run: leave out its tokens")
        return self

    def cap(self, corpus: str) -> int | None:
        """How often a task may read a record of ``corpus``."""
        return (
            self.maximum_epochs.get(corpus) if isinstance(self.maximum_epochs, dict) else self.maximum_epochs
        )

    def at(self, tokens: int) -> Sampling:
        """What holds when ``tokens`` are planned."""
        temperatures = [(self.language_temperature, 0), (self.pair_temperature, 0)]
        budgets, floor, weights = self.budgets, self.language_floor, dict[str, float]()
        begun = [begin for begin in self.begins() if begin <= tokens]
        for stage, begin in zip(self.stages, begun, strict=False):
            budgets = stage.budgets or budgets
            weights |= stage.weights
            floor = floor if stage.language_floor is None else stage.language_floor
            for i, given in enumerate((stage.language_temperature, stage.pair_temperature)):
                if given is not None:
                    temperatures[i] = (given, begin)
        language, pair = (_value(given, tokens - begin) for given, begin in temperatures)
        return Sampling(len(begun) - 1, budgets, weights, language, pair, floor)

    def begins(self) -> list[int]:
        """The tokens at which each stage begins; one stage if none is written down."""
        lengths = [stage.tokens or 0 for stage in self.stages[:-1]]
        return [sum(lengths[:number]) for number in range(len(lengths) + 1)]


class Sampling(NamedTuple):
    """The sampling of one moment of a run."""

    stage: int  # from 0
    budgets: BudgetsConfig
    weights: Mapping[str, float]  # task -> weight, where a stage gives it
    language_temperature: float
    pair_temperature: float
    floor: float | Mapping[str, float]


def _value(temperature: float | AnnealedTemperature | tuple[tuple[int, float], ...], tokens: int) -> float:
    """The temperature after ``tokens``; exact at its points and outside of them."""
    if isinstance(temperature, AnnealedTemperature):
        temperature = ((0, temperature.start), (temperature.tokens, temperature.end))
    if not isinstance(temperature, tuple):
        return temperature
    import numpy as np  # here: who checks a recipe need not wait for it

    places, values = zip(*temperature, strict=True)
    return float(np.interp(tokens, places, values))


def _check(*settings: Any) -> None:
    """Points in order, floors that leave room for each other."""
    for setting in settings:
        if isinstance(setting, tuple) and any(
            b[0] <= a[0] for a, b in zip(setting, setting[1:], strict=False)
        ):
            raise ValueError("the points of a temperature must stand in the order of their tokens")
        if isinstance(setting, dict) and sum(setting.values()) > 1 + 1e-9:
            raise ValueError(f"the floors of the languages add up to {sum(setting.values()):.3g}, above 1")
