"""BTMLM on held-out text: the same on any ranks, frozen tokens that stay through a resume, one word for all is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.batch import PackedBatch
from data.recipe import parse_recipe, read_recipe
from model.generation import Decoding
from tests.ranks import run_on_ranks
from tests.training.runs import WITH_BTMLM, launched, train
from tests.training.test_resume import after_step, die
from training.build import build_model, open_data, pseudo_tokens_of
from training.config import Recipe
from training.evaluation import Evaluator
from training.metrics import read_evaluations, read_events
from training.pseudo_evaluation import FROZEN_FILE, Frozen

MASKED_ONLY = "evaluation={masked: [test], maximum_rows: 4, every: 2}"


def measured(path: Path, *settings: str) -> tuple[Evaluator, Any]:
    """An evaluator and a model with vectors of languages that differ."""
    recipe = parse_recipe(read_recipe(path, [*WITH_BTMLM, MASKED_ONLY, *settings]), Recipe)
    data = open_data(recipe)
    model, _ = build_model(recipe, data)
    torch.nn.init.normal_(model.encoder.embedding.language.weight, std=0.5, generator=torch.manual_seed(1))
    pseudo = pseudo_tokens_of(recipe, data, "cpu")
    tokens = recipe.batch.microbatch_tokens
    return (
        Evaluator(data.store, data.material, recipe.evaluation, tokens, recipe.tasks.btmlm, pseudo), model.eval()
    )  # fmt: skip


@pytest.mark.ranks
def test_figures_and_frozen_tokens_do_not_depend_on_ranks_or_microbatches(small_recipe: Path) -> None:
    def of_rank(group: Any, *settings: str) -> tuple[list[dict[str, float]], np.ndarray, str]:
        launched()
        measure, model = measured(small_recipe, *settings)

        def forward(batch: PackedBatch, sentence_vectors_only: bool) -> Any:
            return model(batch, sentence_vectors_only=sentence_vectors_only)

        def generate(generation: PackedBatch, decoding: Decoding) -> torch.Tensor:
            return model(generation, decoding=decoding)

        found = [measure(forward, generate), measure(forward, generate, 7)]
        with torch.no_grad():
            model.encoder.embedding.language.weight.neg_()  # other pseudo tokens, the same reading of them
        found.append(measure(forward, generate, 9))
        assert "masked/btmlm/loss" not in measure(forward)
        return found, measure.pseudo.frozen.ids, measure.pseudo.fingerprint

    (truth,) = run_on_ranks(of_rank, 1)
    before, at, after = truth[0]
    frozen = {name for name in at if name.startswith("masked/btmlm_frozen/")}
    assert "masked/btmlm_frozen/loss" in frozen and set(at) - set(before) == frozen
    assert {"masked/btmlm/accuracy", "masked/btmlm/accuracy/de", "pseudo/distinct_1/de"} <= set(before)
    for name in frozen:  # they were written in this evaluation
        assert at[name] == at[name.replace("_frozen", "")]
        assert after[name] == at[name]  # the languages are not told when the text is read
    assert after["masked/btmlm/loss"] != at["masked/btmlm/loss"]
    others = [*run_on_ranks(of_rank, 2), *run_on_ranks(of_rank, 1, "batch.microbatch_tokens=512")]
    for figures, ids, fingerprint in others:
        assert np.array_equal(ids, truth[1]) and fingerprint == truth[2]
        for mine, theirs in zip(figures, truth[0], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)
    assert measured(small_recipe, "evaluation.seed=1")[0].pseudo.fingerprint != truth[2]


@pytest.mark.ranks
def test_one_word_for_every_text_is_seen_over_all_texts_of_a_language(small_recipe: Path) -> None:
    def of_rank(group: Any) -> dict[str, float]:
        launched()
        measure, model = measured(small_recipe)
        word = int(measure.pseudo._pseudo.scripts.of_ids.nonzero()[0])

        def forward(batch: PackedBatch, sentence_vectors_only: bool) -> Any:
            return model(batch, sentence_vectors_only=sentence_vectors_only)

        return measure(forward, lambda generation, _: torch.full((len(generation.predicted),), word))

    (figures,) = run_on_ranks(of_rank, 1)
    assert figures["pseudo/distinct_1_of_all"] < 0.5 * figures["pseudo/distinct_1"] < 0.5


@pytest.mark.ranks
def test_tokens_are_frozen_once_the_task_is_trained_and_stay_so_when_the_run_goes_on(
    small_recipe: Path, tmp_path: Path
) -> None:
    settings = (*WITH_BTMLM, MASKED_ONLY, "log.every=100", "model.width=16", "model.layers=1")
    train(small_recipe, tmp_path / "whole", *settings)
    truth = read_evaluations(tmp_path / "whole" / "small")
    assert "masked/btmlm/loss" in truth[0] and "masked/btmlm_frozen/loss" not in truth[0]
    assert truth[2]["masked/btmlm_frozen/loss"] == truth[2]["masked/btmlm/loss"]
    assert truth[6]["masked/btmlm_frozen/loss"] != truth[6]["masked/btmlm/loss"]
    (event,) = [e for e in read_events(tmp_path / "whole" / "small") if e["event"] == "pseudo_tokens"]
    assert event["step"] == 2

    with pytest.raises(AssertionError, match="exit codes|failed"):
        train(small_recipe, tmp_path / "cut", *settings, probe=after_step(5, die))
    run = tmp_path / "cut" / "small"
    kept = (run / FROZEN_FILE).read_bytes()
    train(small_recipe, tmp_path / "cut", *settings)
    assert (run / FROZEN_FILE).read_bytes() == kept
    assert read_evaluations(run) == truth


def test_frozen_tokens_of_another_set_or_of_a_later_step_are_not_taken(tmp_path: Path) -> None:
    assert Frozen.read(tmp_path, "a", 10) is None
    Frozen(np.array([5, 6, 7]), 4).write(tmp_path, "a")
    found = Frozen.read(tmp_path, "a", 4)
    assert found is not None and found.ids.tolist() == [5, 6, 7] and found.step == 4
    assert Frozen.read(tmp_path, "b", 10) is None
    assert Frozen.read(tmp_path, "a", 3) is None
    (tmp_path / FROZEN_FILE).write_bytes(b"torn")
    assert Frozen.read(tmp_path, "a", 10) is None
