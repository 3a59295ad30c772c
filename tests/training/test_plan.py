"""The dry run: sizes by arithmetic, and nothing is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data.recipe import parse_recipe, read_recipe
from model.pretraining import PretrainingModel
from tests.training.runs import digests, sharding
from training.build import encoder_config
from training.config import Recipe
from training.plan import memory, print_plan

P = 1000  # parameters
# precision, stage -> bytes of weights, gradients, optimizer for a rank of four
TABLE = {
    ("fp32", 0): (4000, 4000, 8000),
    ("fp32", 1): (4000, 4000, 2000),
    ("fp32", 2): (4000, 1000, 2000),
    ("fp32", 3): (1000, 1000, 2000),
    ("bf16", 1): (2000, 2000, 3000),
    ("bf16", 2): (2000, 500, 3000),
    ("bf16", 3): (500, 500, 3000),
}


@pytest.mark.parametrize(("precision", "stage"), TABLE)
def test_memory_of_a_rank(small_recipe: Path, precision: str, stage: int) -> None:
    recipe = parse_recipe(read_recipe(small_recipe, [f"precision={precision}"]), Recipe)
    parts = memory(recipe, P, layers=2, width=32, stage=stage, ranks=4)
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == TABLE[precision, stage]
    assert parts["together"] == sum(value for name, value in parts.items() if name != "together")


def test_activations_grow_with_the_microbatch_and_shrink_with_checkpointing(small_recipe: Path) -> None:
    def activations(*settings: str) -> float:
        recipe = parse_recipe(read_recipe(small_recipe, settings), Recipe)
        return memory(recipe, P, layers=2, width=32, stage=0, ranks=1)["activations"]

    assert activations("batch.microbatch_tokens=2048") == 2 * activations()
    assert activations("precision=bf16") == activations() / 2
    assert activations("model.activation_checkpointing=true") == activations() / 17
    assert activations("parallel.tensor=2") == pytest.approx(activations() * (10 + 24 / 2) / 34)
    assert activations("parallel={tensor: 2, sequence: true}") == activations() / 2


def test_a_tensor_rank_has_its_part_of_the_model(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for ranks in (1, 2):
        raw = read_recipe(small_recipe, [f"parallel.tensor={ranks}", "model.width=2048"])
        print_plan(parse_recipe(raw, Recipe), raw, sharding(3), Path("ds.json"), 2)
        said[ranks] = capsys.readouterr().out
    assert "2 rank(s) of 2 tensor ranks each" in said[2] and "tensor ranks" not in said[1]
    whole, part = (
        [line for line in text.splitlines() if line.startswith("  parameters")] for text in (said[1], said[2])
    )
    assert whole == part  # of the whole model
    weights = [float(re.search(r"optimizer +([\d.]+)", text)[1]) for text in (said[1], said[2])]  # type: ignore[index]
    assert weights[1] == pytest.approx(
        weights[0] / 2, rel=0.1
    )  # but for norms, positions and the dense layer of the head


def test_it_prints_parameters_steps_and_budgets_and_makes_nothing(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(small_recipe.parent)
    raw = read_recipe(small_recipe)
    recipe = parse_recipe(raw, Recipe)
    print_plan(recipe, raw, sharding(3), Path("ds.json"), 2)
    said = capsys.readouterr().out
    model = PretrainingModel(encoder_config(recipe, 2000, 0))
    assert f"{sum(p.numel() for p in model.parameters()):,} (64,000 of them the token table)" in said
    assert "vocabulary  2,000 rows in the token table, 2,000 ids in the tokenizer" in said
    assert "ZeRO-3), 2 rank(s)" in said and "4,096 tokens = 4 microbatches of 1,024; 2 of them a rank" in said
    for task, share in (
        ("mmlm", 25.0),
        ("tlm", 12.5),
        ("translation_alignment", 25.0),
        ("mixed_alignment", 25.0),
    ):
        assert f"{task:<22} {share:5.1f} % of the tokens" in said
    assert "by arithmetic (not measured)" in said
    assert "languages'" not in said
    assert digests(small_recipe.parent) == before


def test_the_table_of_languages_is_counted_and_named(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = read_recipe(small_recipe, ["model.language_embeddings=true"])
    recipe = parse_recipe(raw, Recipe)
    print_plan(recipe, raw, sharding(3), Path("ds.json"), 2)
    model = PretrainingModel(encoder_config(recipe, 2000, 22))
    counted = sum(p.numel() for p in model.parameters())
    said = capsys.readouterr().out
    assert f"{counted:,} (64,000 of them the token table, 704 the languages', which are not exported)" in said
