"""The DeepSpeed file: how to shard. Read, checked key by key, and joined with what the recipe decides.

DeepSpeed itself takes misspelt keys in silence ("zero_optimisation", "gradient_cliping"); here they are errors.
One owner for each knob: batch, accumulation, clipping, learning rate and precision belong to the recipe, stage,
offload, buckets and communication to this file. "auto" values, as Hugging Face files have them, are filled in.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from data.recipe import UserError
from data.tasks import TASKS
from training.config import Recipe

_ZERO = """stage allgather_partitions allgather_bucket_size overlap_comm reduce_scatter reduce_bucket_size
    contiguous_gradients round_robin_gradients sub_group_size offload_optimizer offload_param prefetch_bucket_size
    param_persistence_threshold model_persistence_threshold max_live_parameters max_reuse_distance
    stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_model_persistence_threshold
    stage3_max_live_parameters stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save
    stage3_gather_fp16_weights_on_model_save stage3_module_granularity_threshold stage3_use_all_reduce_for_fetch_params
    module_granularity_threshold use_all_reduce_for_fetch_params use_multi_rank_bucket_allreduce
    ignore_unused_parameters zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights
    zero_quantized_gradients memory_efficient_linear allgather_sequential stage3_allgather_sequential
    log_trace_cache_warnings enable_sanity_checks parameter_alignment""".split()
_PRECISION = (
    "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states"
)
_KNOWN: dict[str, Any] = {
    "zero_optimization": {
        **dict.fromkeys(_ZERO),
        "offload_param": dict.fromkeys(
            "device nvme_path buffer_count buffer_size max_in_cpu pin_memory".split()
        ),
        "offload_optimizer": dict.fromkeys(
            "device nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio"
            " super_offload cpuadam_cores_perc".split()
        ),
    },
    "bf16": dict.fromkeys(_PRECISION.split()),
    "fp16": dict.fromkeys(
        "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis".split()
    ),
    "comms_logger": dict.fromkeys("enabled verbose prof_all debug prof_ops".split()),
    "aio": dict.fromkeys("block_size queue_depth intra_op_parallelism single_submit overlap_events".split()),
    **dict.fromkeys(
        """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping
        communication_data_type prescale_gradients gradient_predivide_factor steps_per_print wall_clock_breakdown
        memory_breakdown dump_state log_level zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
        data_types timers disable_allgather""".split()
    ),
}
_OURS = {"optimizer": "optimizer", "scheduler": "optimizer.schedule", "fp16": "precision (bf16 or fp32)"}


def read_sharding(path: Path) -> dict[str, Any]:
    """The checked DeepSpeed file at ``path``; raises UserError with all its faults at once."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(str(p) for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such DeepSpeed file. There is: {', '.join(there) or 'none'}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a DeepSpeed file is a JSON object, this one holds a {type(values).__name__}"
        )
    problems = _unknown(values, _KNOWN, "")
    stage = values.get("zero_optimization", {})
    stage = stage.get("stage", 0) if isinstance(stage, dict) else None
    if stage not in (0, 1, 2, 3):
        problems.append(f"zero_optimization.stage is {stage!r}: it is 0, 1, 2 or 3")
    if problems:
        raise UserError("\n  ".join([f"{path}: {len(problems)} error(s) in the DeepSpeed file", *problems]))
    return values


def resolve_sharding(
    values: dict[str, Any], path: Path, recipe: Recipe, recipe_path: Path, ranks: int
) -> dict[str, Any]:
    """DeepSpeed's dict for ``ranks`` data-parallel ranks; a knob that both files set and differ on is a UserError."""
    microbatches = recipe.batch.step_tokens // recipe.batch.microbatch_tokens
    accumulation = -(-microbatches // ranks)
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # a microbatch is one packed stream
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": accumulation * ranks,
        "gradient_clipping": recipe.optimizer.gradient_clipping,
    }
    problems = [
        f"{key} is {values[key]!r} in {path} and {ours[key]!r} by {recipe_path}"
        for key in ours
        if key in values and values[key] not in ("auto", ours[key])
    ]
    bf16 = dict(values.get("bf16", {}))
    enabled = bf16.get("enabled", "auto")
    if enabled != "auto" and enabled != (recipe.precision == "bf16"):
        problems.append(
            f"bf16.enabled is {enabled} in {path}, precision is {recipe.precision} in {recipe_path}"
        )
    if recipe.precision == "bf16" and not values.get("zero_optimization", {}).get("stage", 0):
        raise UserError(
            f"{path}: zero_optimization.stage 0 with precision bf16 of {recipe_path}. DeepSpeed has another optimizer"
            " for that, whose steps stray from those of the other stages. Take stage 1 (on one rank it holds the"
            " same), or precision: fp32."
        )
    if (
        recipe.model.dropout
        and accumulation > 1
        and any(TASKS[name].loss == "alignment" for name in recipe.tasks.enabled())
    ):
        raise UserError(
            f"{recipe_path}: model.dropout {recipe.model.dropout} with {accumulation} microbatches a rank. The"
            " sentences of a step are embedded twice then, and dropout would make the two differ: set it to 0, or"
            " give each rank one microbatch (batch.microbatch_tokens, or more ranks)."
        )
    if problems:
        raise UserError(
            "\n  ".join(
                [
                    'two files disagree; leave these keys out of the DeepSpeed file, or write "auto":',
                    *problems,
                ]
            )
        )
    resolved = {**values, **ours, "steps_per_print": values.get("steps_per_print", 10**9)}
    resolved["bf16"] = {"check_grad_overflow": True, **bf16, "enabled": recipe.precision == "bf16"}
    resolved.setdefault("zero_allow_untested_optimizer", True)  # ours is AdamW of torch or apex
    resolved.setdefault("zero_force_ds_cpu_optimizer", False)  # else offloading refuses it
    resolved["zero_optimization"] = {
        key: value for key, value in values.get("zero_optimization", {}).items() if value != "auto"
    }
    return resolved


def _unknown(values: dict[str, Any], known: dict[str, Any], prefix: str) -> list[str]:
    problems = []
    for key, value in values.items():
        path = prefix + key
        if not prefix and key in _OURS:
            problems.append(f"{path}: belongs to the recipe ({_OURS[key]}); leave it out here")
        elif key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            problems.append(f"{path}: no such key" + (f"; did you mean {prefix}{near[0]}?" if near else ""))
        elif isinstance(known[key], dict):
            if not isinstance(value, dict):
                problems.append(f"{path}: is {value!r}, should be an object")
            else:
                problems += _unknown(value, known[key], path + ".")
    return problems
