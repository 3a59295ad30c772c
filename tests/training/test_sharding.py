"""The DeepSpeed file: every key is known, every knob has one owner, "auto" is filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from data.recipe import UserError, parse_recipe, read_recipe
from training.config import Recipe
from training.sharding import read_sharding, resolve_sharding

STAGE3 = {"zero_optimization": {"stage": 3}}


def recipe(path: Path, *settings: str) -> Recipe:
    return parse_recipe(read_recipe(path, settings), Recipe)


def resolved(path: Path, values: dict[str, Any], *settings: str, ranks: int = 2) -> dict[str, Any]:
    return resolve_sharding(values, Path("ds.json"), recipe(path, *settings), Path("r.yaml"), ranks)


@pytest.mark.parametrize("name", sorted(path.name for path in Path("ds_configs").glob("*.json")))
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_files_of_the_project_are_sound_and_deepspeed_takes_what_comes_out(
    small_recipe: Path, name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = read_sharding(Path("ds_configs") / name)
    found = resolved(small_recipe, values, f"precision={precision}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("deepspeed.comm.get_world_size", lambda *a, **k: 2)
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda *a, **k: 0)
    theirs = DeepSpeedConfig(found)
    assert theirs.zero_optimization_stage == values["zero_optimization"]["stage"]
    assert theirs.bfloat16_config.enabled == (precision == "bf16")
    assert theirs.gradient_clipping == 1.0 and theirs.gradient_accumulation_steps == 2
    assert theirs.zero_force_ds_cpu_optimizer is False  # else offloading refuses the recipe's optimizer


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 4), (2, 2), (3, 2), (4, 1), (5, 1), (8, 1)])
def test_accumulation_covers_the_step_for_any_number_of_ranks(
    small_recipe: Path, ranks: int, accumulation: int
) -> None:
    found = resolved(small_recipe, STAGE3, ranks=ranks)  # 4 microbatches
    assert found["gradient_accumulation_steps"] == accumulation
    assert found["train_micro_batch_size_per_gpu"] == 1
    assert found["train_batch_size"] == accumulation * ranks


def test_auto_is_filled_in_or_left_to_deepspeed(small_recipe: Path) -> None:
    auto = dict.fromkeys(
        (
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "gradient_clipping",
        ),
        "auto",
    )
    values = {
        **auto, "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": 7},
    }  # fmt: skip
    found = resolved(small_recipe, values, "optimizer.gradient_clipping=0.5")
    assert found["gradient_clipping"] == 0.5 and found["bf16"]["enabled"] is False
    assert found["zero_optimization"] == {"stage": 3, "stage3_prefetch_bucket_size": 7}
    assert "auto" not in json.dumps(found)


def test_clipping_is_always_written_since_deepspeed_clips_at_one_without_it(small_recipe: Path) -> None:
    assert resolved(small_recipe, STAGE3, "optimizer.gradient_clipping=0")["gradient_clipping"] == 0.0


def test_what_was_read_is_not_changed(small_recipe: Path) -> None:
    values = {"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}, "bf16": {}}
    before = json.dumps(values)
    resolved(small_recipe, values)
    assert json.dumps(values) == before


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ({"train_batch_size": 64}, (), "train_batch_size is 64 in ds.json and 4 by r.yaml"),
        ({"gradient_clipping": 0.5}, (), "gradient_clipping is 0.5 in ds.json and 1.0"),
        ({"bf16": {"enabled": True}}, (), "bf16.enabled is True in ds.json, precision is fp32 in r.yaml"),
        ({"bf16": {"enabled": False}}, ("precision=bf16",), "bf16.enabled is False"),
    ],
)
def test_a_knob_that_both_files_set_differently_names_both(
    small_recipe: Path, values: dict[str, Any], settings: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match="two files disagree") as caught:
        resolved(small_recipe, {**STAGE3, **values}, *settings)
    assert words in str(caught.value)


def test_a_knob_that_both_files_set_alike_is_fine(small_recipe: Path) -> None:
    resolved(small_recipe, {**STAGE3, "gradient_clipping": 1.0, "gradient_accumulation_steps": 2})


def test_bf16_without_a_zero_stage_is_refused(small_recipe: Path) -> None:
    for values in ({}, {"zero_optimization": {}}, {"zero_optimization": {"stage": 0}}):
        with pytest.raises(UserError, match="Take stage 1"):
            resolved(small_recipe, values, "precision=bf16")
        resolved(small_recipe, values)


def test_dropout_needs_one_microbatch_a_rank_where_sentences_are_compared(small_recipe: Path) -> None:
    with pytest.raises(UserError, match="2 microbatches a rank"):
        resolved(small_recipe, STAGE3, "model.dropout=0.1")
    resolved(small_recipe, STAGE3, "model.dropout=0.1", ranks=4)
    resolved(
        small_recipe, STAGE3, "model.dropout=0.1",
        "tasks.translation_alignment=null", "tasks.mixed_alignment=null",
    )  # fmt: skip


def test_all_faults_of_the_file_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps(
            {
                "zero_optimization": {
                    "stage": 5,
                    "offload_optimizer": {"devise": "cpu"},
                    "overlap_com": True,
                },
                "bfloat_16": {"enabled": True},
                "scheduler": {},
                "bf16": 3,
                "zzz": 1,
            }
        )
    )
    with pytest.raises(UserError) as caught:
        read_sharding(path)
    said = str(caught.value)
    for words in (
        "7 error(s)",
        "did you mean zero_optimization.offload_optimizer.device?",
        "did you mean zero_optimization.overlap_comm?",
        "bfloat_16: no such key",
        "scheduler: belongs to the recipe",
        "bf16: is 3, should be an object",
        "zzz: no such key",
        "zero_optimization.stage is 5",
    ):
        assert words in said
