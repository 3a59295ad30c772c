"""The DeepSpeed file: every key is known, every knob has one owner, "auto" is filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import (
    DeepSpeedZeroOffloadOptimizerConfig,
    DeepSpeedZeroOffloadParamConfig,
)

from data.recipe import UserError, parse_recipe, read_recipe
from training.config import Recipe
from training.sharding import _KNOWN, read_sharding, resolve_sharding, sharding_file

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


def test_the_file_that_is_taken_by_itself_follows_from_where_the_run_is() -> None:
    taken = {
        (gpu, ranks, precision): read_sharding(sharding_file(gpu, ranks, precision))["zero_optimization"]["stage"]
        for gpu in (False, True) for ranks in (1, 2) for precision in ("bf16", "fp32")
    }  # fmt: skip
    assert taken == {
        (gpu, ranks, precision): 3 if ranks == 2 else 2 if precision == "bf16" else 0
        for gpu, ranks, precision in taken
    }


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


# precision, stage, microbatches of a rank -> the type in which their gradients are added up, if it is set
SUMS = {
    ("bf16", 3, 2): "fp32",
    ("bf16", 2, 2): "fp32",
    ("bf16", 1, 2): None,
    ("bf16", 0, 2): None,
    ("bf16", 3, 1): None,
    ("fp32", 3, 2): None,
}


@pytest.mark.parametrize(("precision", "stage", "microbatches"), SUMS)
def test_gradients_are_added_up_in_fp32_where_deepspeed_can(
    small_recipe: Path, precision: str, stage: int, microbatches: int
) -> None:
    values = {"zero_optimization": {"stage": stage}}
    found = resolved(small_recipe, values, f"precision={precision}", ranks=4 // microbatches)
    assert found.get("data_types", {}).get("grad_accum_dtype") == SUMS[precision, stage, microbatches]
    own = {**values, "data_types": {"grad_accum_dtype": "bf16"}}
    if precision == "bf16" or stage >= 2:
        assert resolved(small_recipe, own, f"precision={precision}")["data_types"] == own["data_types"]


@pytest.mark.parametrize(
    ("precision", "stage", "given"), [("bf16", 1, "fp32"), ("bf16", 0, "fp32"), ("fp32", 1, "bf16")]
)
def test_a_type_of_gradients_that_the_stage_can_not_have_is_refused(
    small_recipe: Path, precision: str, stage: int, given: str
) -> None:
    values = {"zero_optimization": {"stage": stage}, "data_types": {"grad_accum_dtype": given}}
    with pytest.raises(
        UserError, match=f"grad_accum_dtype {given} with precision {precision}.*take another stage"
    ):
        resolved(small_recipe, values, f"precision={precision}")


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


def test_values_of_a_wrong_type_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps(
            {
                "zero_optimization": {
                    "stage": "three",
                    "overlap_comm": "yes",
                    "reduce_bucket_size": "big",
                    "stage3_prefetch_bucket_size": "auto",  # DeepSpeed's own default then
                    "sub_group_size": 5e8,  # a whole number too
                    "offload_optimizer": {"device": "gpu", "pin_memory": 1, "ratio": 0.5},
                },
                "gradient_clipping": "auto",
                "steps_per_print": 1.5,
                "prescale_gradients": "auto",
                "bf16": {"enabled": "true"},
                "communication_data_type": "bfloat",
            }
        )
    )
    with pytest.raises(UserError) as caught:
        read_sharding(path)
    said = str(caught.value)
    for words in (
        "9 error(s)",
        "zero_optimization.stage is 'three': it is 0, 1, 2 or 3",
        'zero_optimization.overlap_comm: is "yes", should be true or false',
        'zero_optimization.reduce_bucket_size: is "big", should be a whole number, 0 or more',
        'zero_optimization.offload_optimizer.device: is "gpu", should be "none" or "cpu" or "nvme"',
        "zero_optimization.offload_optimizer.pin_memory: is 1, should be true or false",
        "steps_per_print: is 1.5, should be a whole number",
        'prescale_gradients: is "auto", should be true or false',
        'bf16.enabled: is "true", should be true or false',
        'communication_data_type: is "bfloat", should be "fp32" or',
    ):
        assert words in said, words


def test_the_types_are_those_that_deepspeed_takes() -> None:
    sections = {
        "zero_optimization": DeepSpeedZeroConfig,
        "offload_param": DeepSpeedZeroOffloadParamConfig,
        "offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    }
    for name, theirs in sections.items():
        ours = _KNOWN[name] if name in _KNOWN else _KNOWN["zero_optimization"][name]
        fields = {**theirs.model_fields, **{f.alias: f for f in theirs.model_fields.values() if f.alias}}
        for key, kind in ours.items():
            if key in ("stage", "device") or isinstance(kind, dict):
                continue
            assert key in fields, f"{name}.{key}"
            assert kind.__name__ in str(fields[key].annotation) or (
                kind is str and "Path" in str(fields[key].annotation)
            ), f"{name}.{key}: {fields[key].annotation}"


@pytest.mark.parametrize(
    "offload", [{"device": "nvme"}, {"device": "cpu", "ratio": 0.5}, {"super_offload": True}]
)
def test_state_that_a_checkpoint_could_not_read_is_refused(tmp_path: Path, offload: dict[str, Any]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": offload}}))
    with pytest.raises(UserError, match="a checkpoint reads the optimizer's state from memory"):
        read_sharding(path)
