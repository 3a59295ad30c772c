"""The plan of an ablation: variants over one recipe, seeds, presets; and the runs that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from data.config import DataConfig, Name, Text
from data.recipe import RawRecipe, Section, UserError, parse_recipe, read_recipe
from data.sources import near
from training.config import Recipe

T = TypeVar("T")


class VariantConfig(Section):
    """One row of the table: its name there, and the settings that make it of the recipe."""

    title: Text
    needs: Text | None = None  # a folder without which there is no such run, such as what a teacher said
    set: tuple[Text, ...] = ()  # each as on the command line: section.key=value


class PresetConfig(Section):
    """A size: settings of all variants, and how a run is started."""

    seeds: tuple[int, ...] = Field(min_length=1)
    launcher: Literal["python", "deepspeed"]  # one process with one core, several at a time; or all devices
    deepspeed_config: Text
    set: tuple[Text, ...] = ()
    without: tuple[Name, ...] = ()  # variants that are run at this size only if they are named
    variants: dict[
        Name, tuple[Text, ...]
    ] = {}  # what a single variant needs at this size, stronger than its own


class Plan(Section):
    """The file that says what is compared."""

    recipe: Text
    variants: dict[Name, VariantConfig] = Field(min_length=1)
    presets: dict[Name, PresetConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Plan:
        for name, preset in self.presets.items():
            for key, variant in [("variants", v) for v in preset.variants] + [
                ("without", v) for v in preset.without
            ]:
                if variant not in self.variants:
                    raise ValueError(
                        f"presets.{name}.{key} names {variant!r}; variants: {', '.join(self.variants)}"
                    )
        titles = [variant.title for variant in self.variants.values()]
        again = sorted({title for title in titles if titles.count(title) > 1})
        if again:
            raise ValueError(f"variants: two have the title {again[0]!r}")
        return self


@dataclass(frozen=True)
class Run:
    """One training run: a variant with a seed."""

    variant: str
    seed: int
    overrides: tuple[str, ...]  # of the plan's recipe; the run's name is among them
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of the run folder: a run with other settings, or of other data, has another one."""
        return self.recipe.name


def read_plan(path: Path) -> Plan:
    """The plan at ``path``; UserError says what is wrong with it."""
    return parse_recipe(read_recipe(path), Plan)


def chosen(entries: Mapping[str, T], name: str, option: str) -> T:
    """The entry of a plan that an option names."""
    if name not in entries:
        raise UserError(f"{option} {name}: the plan has {', '.join(entries)}{near(name, list(entries))}")
    return entries[name]


def base_recipe(plan: Plan, preset: PresetConfig, more: Sequence[str] = ()) -> Recipe:
    """What the variants have in common, the token store above all."""
    return parse_recipe(read_recipe(plan.recipe, [*preset.set, *more]), Recipe)


def runs_of(
    plan: Plan, preset: PresetConfig, seeds: Sequence[int], more: Sequence[str], store: str
) -> list[Run]:
    """All runs, seed by seed, so that a table of all variants stands after the first; none of a variant that lacks
    what it needs.

    ``more`` are settings from the command line, stronger than the plan's; ``store`` is the fingerprint of the
    token store.

    Raises:
        UserError: a variant is no valid recipe, or can not be compared with the others.

    """
    shared = base_recipe(plan, preset, more)
    return [
        _run(plan, preset, variant, seed, more, store, shared)
        for seed in seeds
        for variant in plan.variants
        if variant not in lacking(plan)
    ]


def lacking(plan: Plan) -> dict[str, str]:
    """variant -> the folder that it needs and that is not there."""
    needs = {name: variant.needs for name, variant in plan.variants.items()}
    return {
        name: folder for name, folder in needs.items() if folder is not None and not Path(folder).is_dir()
    }


def _run(
    plan: Plan, preset: PresetConfig, variant: str, seed: int, more: Sequence[str], store: str, shared: Recipe
) -> Run:
    of_variant = [*plan.variants[variant].set, *preset.variants.get(variant, ())]
    overrides = [*preset.set, *of_variant, f"seed={seed}", *more]
    try:
        raw = read_recipe(plan.recipe, overrides)
        recipe = parse_recipe(raw, Recipe)
    except UserError as error:
        raise UserError(f"variant {variant}: {error}") from None
    uneven = [key for key in DataConfig.model_fields if getattr(recipe, key) != getattr(shared, key)]
    if recipe.steps * recipe.batch.step_tokens != shared.steps * shared.batch.step_tokens:
        uneven += ["steps", "batch"]
    if uneven:
        raise UserError(
            f"variant {variant}: sets {', '.join(uneven)}; all variants read one store and spend the same tokens, so"
            f" set it for all of them: in {plan.recipe}, in the preset, or with --set"
        )
    name = f"{variant}-seed{recipe.seed}-{_digest(recipe, store)}"
    named = RawRecipe(raw.path, {**raw.values, "name": name}, raw.origins, raw.lines)
    return Run(variant, recipe.seed, (*overrides, f"name={name}"), parse_recipe(named, Recipe))


def _digest(recipe: Recipe, store: str) -> str:
    """Of all settings, of the data and of what a teacher said: what makes it this run and no other."""
    from data.store import digest_of_values
    from data.teaching import read_manifest

    settings = recipe.model_dump(mode="json", exclude={"name", "store", "log", "checkpoint", "workers"})
    teachers = (
        getattr(task, "teacher", None)
        for task in (recipe.tasks.adaptive_margin, recipe.tasks.in_batch_margin)
    )
    taught = [read_manifest(Path(teacher))["digest"] for teacher in teachers if teacher]
    return digest_of_values({"settings": settings, "store": store, "taught": taught})[:8]
