"""What belongs to a run for ever, and what may change while it goes on; recipes that do not fit together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.inputs import differences
from data.recipe import UserError, parse_recipe, read_recipe, resolved_with_origins
from training.config import Recipe, settings_of_a_run


def recipe(path: Path, *settings: str) -> Recipe:
    return parse_recipe(read_recipe(path, settings), Recipe)


FREE = (
    "steps=9", "workers=2", "batch.microbatch_tokens=512", "optimizer.learning_rate=3e-3", "log.every=5",
    "tasks.mmlm.loss_weight=2", "model.dropout=0.1", "model.activation_checkpointing=true", "evaluation={}",
    "checkpoint.keep=9", "store=elsewhere", "name=other", "kernels.vocabulary=reference",
)  # fmt: skip
FIXED = (
    "seed=4", "tasks.mmlm.weight=2", "tasks.camlm.mask_rate=0.3", "sampling.language_temperature=0.7",
    "sampling.budgets.bilingual=3", "maximum_tokens=32", "batch.step_tokens=8192", "batch.row_tokens=1024",
    "model.layers=3", "model.learn_temperature=false", "precision=bf16", "tasks.tlm=null",
)  # fmt: skip


@pytest.mark.parametrize("setting", FREE)
def test_may_change(small_recipe: Path, setting: str) -> None:
    assert not differences(
        settings_of_a_run(recipe(small_recipe)), settings_of_a_run(recipe(small_recipe, setting))
    )


@pytest.mark.parametrize("setting", FIXED)
def test_may_not_change(small_recipe: Path, setting: str) -> None:
    found = differences(
        settings_of_a_run(recipe(small_recipe)), settings_of_a_run(recipe(small_recipe, setting))
    )
    assert len(found) == 1 and found[0].startswith(setting.partition("=")[0] + ": was ")


def test_the_settings_of_a_run_are_plain_values_that_json_gives_back(small_recipe: Path) -> None:
    settings = settings_of_a_run(recipe(small_recipe))
    assert not differences(json.loads(json.dumps(settings)), settings)


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_of_the_project_are_sound_and_come_back_from_the_run_folder(
    path: Path, tmp_path: Path
) -> None:
    raw = read_recipe(path)
    first = parse_recipe(raw, Recipe)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_with_origins(first, raw))
    assert parse_recipe(read_recipe(resolved), Recipe) == first


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimizer.warmup_steps=7", "optimizer.warmup_steps 7 exceeds steps 6"),
        ("batch.microbatch_tokens=768", "microbatch_tokens 768 is not a multiple of row_tokens 512"),
        ("batch.step_tokens=1536", "step_tokens 1536 is not a multiple of microbatch_tokens 1024"),
        ("model.layers=null", "give layers, or a folder to start from"),
        ("evaluation.retrieval.among.among=[sentences]", "evaluation.retrieval.among needs parallel corpora"),
        ("precision=fp16", "precision"),
        ("tasks.mmlm.mask_rate=1", "tasks.mmlm.mask_rate"),
        ("alignment.additive_margin=-0.1", "alignment.additive_margin"),
        ("alignment.matryoshka=[16, 8]", "give each width once, the smallest first"),
        ("alignment.matryoshka=[8, 100000]", "prefixes are shorter than the sentence vector"),
        ("model.temperature=0", "model.temperature"),
    ],
)
def test_what_does_not_fit_together_is_said(small_recipe: Path, setting: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe(small_recipe, setting)
    assert words in str(caught.value)


def test_a_recipe_does_not_change(small_recipe: Path) -> None:
    found: Any = recipe(small_recipe)
    with pytest.raises(ValueError, match="frozen"):
        found.seed = 5


JUDGED = ("convergence={}", "evaluation={every: 2, masked: [test]}")


def test_what_decides_about_budgets_belongs_to_the_run_and_when_it_ends_does_not(small_recipe: Path) -> None:
    before = settings_of_a_run(recipe(small_recipe, *JUDGED))
    for free in ("convergence.stop=false", "evaluation.other_pairs=1", "steps=9"):
        assert not differences(before, settings_of_a_run(recipe(small_recipe, *JUDGED, free)))
    for fixed in ("convergence.window=3", "evaluation.every=3", "evaluation.maximum_rows=5"):
        (found,) = differences(before, settings_of_a_run(recipe(small_recipe, *JUDGED, fixed)))
        assert found.startswith(fixed.partition("=")[0] + ": was ")


def gated(generators: str) -> str:
    gate = "{gate: {camlm_accuracy: 0.1}}"
    return f"tasks.mixed_alignment={{generators: {generators}, pseudo_tokens: {gate}}}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("convergence={}",), "give evaluation.every (how often, in steps)"),
        ((*JUDGED, "evaluation.masked=[]"), "evaluation.masked (which corpora)"),
        ((*JUDGED, "tasks.camlm=null"), "needs the bilingual task camlm under 'tasks'"),
        ((*JUDGED, "convergence.monolingual=btmlm"), "needs the monolingual task btmlm under 'tasks'"),
        ((*JUDGED, "convergence.windw=3"), "convergence.windw: unknown key; did you mean 'window'?"),
        (("tasks.btmlm={gate: {camlm_accuracy: 0.1}}",), "tasks.btmlm.gate waits for CAMLM's held-out accuracy"),
        ((gated("{dictionary: 1, pseudo_tokens: 1}"), "model.language_embeddings=true"),
         "tasks.mixed_alignment.pseudo_tokens.gate waits for CAMLM's held-out accuracy"),
        ((gated("{dictionary: 1}"),), "pseudo_tokens.gate has no effect: the generator is off"),
        ((gated("{pseudo_tokens: 1}"), "model.language_embeddings=true"), "another generator has to mix, and none"),
        (("sampling.stages=[{tokens: 5, weights: {tml: 1}}, {}]",), "sampling.stages.0.weights names 'tml'; tasks"),
        (
            ("tasks.translation_alignment=null", "tasks.mixed_alignment=null", "alignment.additive_margin=0.1"),
            "alignment is the loss of tasks.translation_alignment, mixed_alignment and triplet_alignment, and none",
        ),
        (("sampling.stages=[{tokens: 5, budget: {}}, {}]",), "stages.0.budget: unknown key; did you mean 'budgets'?"),
        (("sampling.maximum_epochs={test: 3}",), "names 'test'; corpora that are trained on: rows, sentences"),
        (("sampling.language_temperature={start: 0.5, end: 2, tokens: 9}",), "temperature.end = 2: input should be"),
        (("sampling.language_floor={de: 0.7, fr: 0.4}",), "add up to 1.1, above 1"),
    ],
)  # fmt: skip
def test_rules_that_look_at_nothing_and_names_that_are_not_there_are_refused(
    small_recipe: Path, settings: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError) as error:
        recipe(small_recipe, *settings)
    assert said in str(error.value) and "one error" in str(error.value), str(error.value)
