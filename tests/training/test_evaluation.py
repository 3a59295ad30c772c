"""Evaluation reads the same at every call and on any number of ranks; the control really sees nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.batch import PackedBatch
from data.recipe import parse_recipe, read_recipe
from model.huggingface import write_folder
from model.pretraining import PretrainingModel, PretrainingOutput
from tests.ranks import run_on_ranks
from tests.training.runs import launched
from training.build import DataParts, build_model, open_data
from training.config import Recipe
from training.evaluation import Evaluator
from training.masked_scores import MaskedSet
from training.saved_run import model_of


def evaluator(path: Path, *settings: str) -> tuple[Evaluator, DataParts, Recipe]:
    recipe = parse_recipe(read_recipe(path, settings), Recipe)
    data = open_data(recipe)
    return (
        Evaluator(data.store, data.material, recipe.evaluation, recipe.batch.microbatch_tokens), data, recipe
    )  # fmt: skip


def forward_of(model: PretrainingModel) -> Callable[[PackedBatch, bool], PretrainingOutput]:
    return lambda batch, sentence_vectors_only: model(batch, sentence_vectors_only=sentence_vectors_only)


@pytest.mark.ranks
def test_the_figures_do_not_depend_on_ranks_microbatches_or_the_call(small_recipe: Path) -> None:
    def of_rank(group: Any, *settings: str) -> list[dict[str, float]]:
        launched()
        measure, data, recipe = evaluator(small_recipe, "evaluation.retrieval.among=null", *settings)
        model, _ = build_model(recipe, data)
        calls = 2 if group.size() == 1 else 1
        return [measure(forward_of(model)) for _ in range(calls)]

    quick = "evaluation.retrieval={test: {corpus: test}}"
    ((truth, again),) = run_on_ranks(of_rank, 1, quick)
    assert again == truth
    assert 0 < truth["retrieval/test/mean"] < 1 and truth["masked/mmlm/loss"] == pytest.approx(7.6, abs=0.1)
    others = [*run_on_ranks(of_rank, 2, quick), *run_on_ranks(of_rank, 3, quick)]
    others += run_on_ranks(of_rank, 1, quick, "batch.microbatch_tokens=512")
    for figures in (found for each in others for found in each):
        assert figures.keys() == truth.keys()
        for name, value in truth.items():
            assert figures[name] == pytest.approx(value, rel=1e-5), name


def test_of_a_folder_without_a_masked_head_the_masked_figures_are_left_out(
    small_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, data, recipe = evaluator(small_recipe)
    model, _ = build_model(recipe, data)
    folder = tmp_path / "encoder"
    write_folder(
        model.state_dict(),
        model.config,
        folder,
        tokenizer_folder=data.store.tokenizer_folder,
        maximum_tokens=64,
    )
    assert model_of(folder, str(small_recipe))[1].evaluation == recipe.evaluation
    assert "left out" not in capsys.readouterr().out
    weights = load_file(folder / "model.safetensors")
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith("lm_head.")}
    assert len(encoder) < len(weights)
    save_file(encoder, folder / "model.safetensors", metadata={"format": "pt"})
    _, chosen = model_of(folder, str(small_recipe))
    assert chosen.evaluation == recipe.evaluation.model_copy(update={"masked": ()})
    assert "has no masked-token head: masked accuracy is left out" in capsys.readouterr().out


@pytest.mark.ranks
def test_a_model_that_maps_everything_to_one_point_finds_nothing(small_recipe: Path) -> None:
    def of_rank(group: Any) -> dict[str, float]:
        launched()
        measure, _, _ = evaluator(small_recipe, "evaluation.masked=[]")

        def forward(batch: PackedBatch, sentence_vectors_only: bool) -> PretrainingOutput:
            assert sentence_vectors_only
            vectors = torch.ones(batch.sentence_documents, 4) / 2
            return PretrainingOutput(torch.zeros(()), torch.empty(0), torch.empty(0), vectors, torch.ones(()))

        return measure(forward)

    (figures,) = run_on_ranks(of_rank, 1)
    # Texts that are written alike in both languages are right whatever the vectors are.
    assert figures["retrieval/test/mean"] <= 0.1 and figures["retrieval/among/mean"] <= 0.1
    assert not any(name.startswith("masked") for name in figures)


def documents(masked: MaskedSet) -> dict[str, list[dict[str, np.ndarray]]]:
    """The documents of every stream by its name, in order: shown, positions, predicted, targets, context."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for batch in masked.batches:
        starts = batch.document_starts.tolist()
        for n, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            mine = (batch.predicted >= start) & (batch.predicted < end)
            if not mine.any():
                continue
            stream = int(batch.prediction_stream[mine][0])
            found.setdefault(masked.names[stream], []).append(
                {
                    "ids": batch.token_ids[start:end].numpy(),
                    "positions": batch.position_ids[start:end].numpy(),
                    "predicted": (batch.predicted[mine] - start).numpy(),
                    "targets": batch.targets[mine].numpy(),
                    "context": np.array(int(batch.context_lengths[n])),
                }
            )
    return found


def test_the_control_has_the_same_readers_and_no_context_but_special_tokens(small_recipe: Path) -> None:
    measure, data, _ = evaluator(small_recipe)
    found = documents(measure._masked)
    tokenizer = data.material.tokenizer
    pairs = [name.removeprefix("camlm/") for name in found if name.startswith("camlm/")]
    assert len(pairs) >= 10
    for pair in pairs:
        whole, control = found[f"camlm/{pair}"], found[f"camlm_control/{pair}"]
        assert len(whole) == len(control)
        for one, other in zip(whole, control, strict=True):
            context = int(other["context"])
            assert context == 2 and set(other["ids"][:context]) <= {tokenizer.bos_id, tokenizer.eos_id}
            assert (other["ids"][context:] == tokenizer.mask_id).all()
            np.testing.assert_array_equal(other["targets"], one["targets"])
            readers, theirs = slice(context, None), slice(int(one["context"]), None)
            np.testing.assert_array_equal(other["positions"][readers], one["positions"][theirs])
            assert (other["predicted"] >= context).all()
            assert len(other["predicted"]) == len(one["predicted"]) == len(other["ids"]) - context
        assert any(int(one["context"]) > 2 for one in whole)


def test_the_masks_are_fixed_for_a_run_and_differ_by_the_evaluations_seed_alone(small_recipe: Path) -> None:
    def targets(*settings: str) -> dict[str, list[list[int]]]:
        measure, _, _ = evaluator(small_recipe, *settings)
        found = documents(measure._masked)
        return {name: [document["targets"].tolist() for document in each] for name, each in found.items()}

    truth = targets()
    assert targets("seed=9", "batch.microbatch_tokens=2048", "tasks.mmlm.mask_rate=0.3") == truth
    assert targets("evaluation.seed=1") != truth


def test_held_out_text_is_what_is_measured_and_no_more_of_it_than_asked(small_recipe: Path) -> None:
    few, data, _ = evaluator(small_recipe, "evaluation.maximum_rows=2")
    row = data.store.corpora["test"].record_starts[2]
    assert len(documents(few._masked)["mmlm/en"]) == 2
    assert (
        sum(len(found) for name, found in documents(few._masked).items() if name.startswith("mmlm/")) == row
    )
    assert data.store.corpora["test"].held_out
