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
from training.config import Recipe


def _of(kind: Any, names: str) -> dict[str, Any]:
    """Each of ``names`` with what its value may be: a type, or the tuple of its allowed strings."""
    return dict.fromkeys(names.split(), kind)


_DEVICE = {"device": ("none", "cpu", "nvme")}
_ZERO = {
    **_of(int, """stage allgather_bucket_size reduce_bucket_size sub_group_size prefetch_bucket_size
        param_persistence_threshold model_persistence_threshold max_live_parameters max_reuse_distance
        stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_model_persistence_threshold
        stage3_max_live_parameters stage3_max_reuse_distance stage3_module_granularity_threshold
        module_granularity_threshold zero_hpz_partition_size"""),
    **_of(bool, """allgather_partitions overlap_comm reduce_scatter contiguous_gradients round_robin_gradients
        stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save
        stage3_use_all_reduce_for_fetch_params use_all_reduce_for_fetch_params use_multi_rank_bucket_allreduce
        ignore_unused_parameters zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients
        memory_efficient_linear allgather_sequential stage3_allgather_sequential log_trace_cache_warnings
        enable_sanity_checks parameter_alignment"""),
    "offload_param": {
        **_DEVICE, "nvme_path": str, "pin_memory": bool, **_of(int, "buffer_count buffer_size max_in_cpu"),
    },
    "offload_optimizer": {
        **_DEVICE, "nvme_path": str, "buffer_count": int, **_of(float, "ratio cpuadam_cores_perc"),
        **_of(bool, "pin_memory pipeline_read pipeline_write fast_init super_offload"),
    },
}  # fmt: skip
_KNOWN: dict[str, Any] = {
    "zero_optimization": _ZERO,
    "bf16": _of(
        bool,
        "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states",
    ),
    "comms_logger": {**_of(bool, "enabled verbose prof_all debug"), "prof_ops": list},
    "aio": {
        **_of(int, "block_size queue_depth intra_op_parallelism"),
        **_of(bool, "single_submit overlap_events"),
    },
    "data_types": {"grad_accum_dtype": ("fp32", "bf16")},
    "timers": {"throughput": {"enabled": bool, "synchronized": bool}},
    **_of(
        int,
        "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps steps_per_print",
    ),
    **_of(float, "gradient_clipping gradient_predivide_factor"),
    **_of(
        bool,
        """prescale_gradients wall_clock_breakdown memory_breakdown dump_state zero_allow_untested_optimizer
        zero_force_ds_cpu_optimizer disable_allgather""",
    ),
    "communication_data_type": ("fp32", "bf16", "fp16"),
}
# "auto" is filled in here for these, and left to DeepSpeed's defaults within zero_optimization.
_FILLED_IN = """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping
    bf16.enabled""".split()
_OURS = {"optimizer": "optimizer", "scheduler": "optimizer.schedule", "fp16": "precision (bf16 or fp32)"}


def sharding_file(gpu: bool, ranks: int, precision: str) -> Path:
    """The DeepSpeed file where none is named.

    One process has nobody to share weights with, and stage 3's hooks, which gather and free what it has anyway, cost
    a small model on a CPU a sixth of its time and one of 12 layers on an H200 two fifths. In fp32 it needs no stage:
    the weights are their own masters. In bf16 stage 2 adds gradients up in float32.
    """
    if ranks > 1:
        name = "zero3.json" if gpu else "cpu.json"
    else:
        name = "one_process.json" if precision == "bf16" else "one_process_fp32.json"
    return Path("ds_configs") / name


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
    problems = _faults(values, _KNOWN, "")
    zero = values.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if type(stage) is not int or stage not in range(4):
        problems.append(f"zero_optimization.stage is {stage!r}: it is 0, 1, 2 or 3")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    if isinstance(offload, dict) and (
        offload.get("device") == "nvme"
        or offload.get("super_offload")
        or (offload.get("device") == "cpu" and offload.get("ratio", 1) not in (1, "auto"))
    ):
        problems.append(
            "zero_optimization.offload_optimizer: a checkpoint reads the optimizer's state from memory, of one kind:"
            ' device "cpu" or "none", without ratio and super_offload'
        )
    if problems:
        raise UserError("\n  ".join([f"{path}: {len(problems)} error(s) in the DeepSpeed file", *problems]))
    return values


def data_ranks(recipe: Recipe, ranks: int) -> int:
    """How many data ranks so many ranks are.

    Raises:
        UserError: they can not share models of ``parallel.tensor`` ranks each.

    """
    tensor = recipe.parallel.tensor
    if ranks % tensor:
        some = ", ".join(str(tensor * n) for n in range(1, 4))
        raise UserError(
            f"parallel.tensor {tensor}: {ranks} rank(s) can not form models of {tensor} ranks each. Start"
            f" {some} ... ranks, or set parallel.tensor to a number that divides {ranks}."
        )
    return ranks // tensor


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
    if recipe.model.dropout and accumulation > 1 and recipe.tasks.aligns:
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
    types = _gradient_type(values, path, recipe, accumulation)
    if types is not None:
        resolved["data_types"] = {"grad_accum_dtype": types}
    resolved.setdefault("zero_allow_untested_optimizer", True)  # ours is AdamW of torch or apex
    resolved.setdefault("zero_force_ds_cpu_optimizer", False)  # else offloading refuses it
    resolved["zero_optimization"] = {
        key: value for key, value in values.get("zero_optimization", {}).items() if value != "auto"
    }
    return resolved


def _gradient_type(values: dict[str, Any], path: Path, recipe: Recipe, accumulation: int) -> str | None:
    """In what the gradients of a rank's microbatches are added up; None leaves it at the type of the weights.

    In bf16 a sum of many microbatches loses what is small beside it, so stages 2 and 3 add up in fp32. Stage 0 has
    no such buffers. For stage 1 DeepSpeed then takes another optimizer (BF16_Optimizer), whose
    state training/optimizer_state.py does not know.
    """
    stage = values.get("zero_optimization", {}).get("stage", 0)
    given = values.get("data_types", {}).get("grad_accum_dtype")
    if given is None:
        return "fp32" if recipe.precision == "bf16" and accumulation > 1 and stage >= 2 else None
    if given != recipe.precision and stage < 2:
        raise UserError(
            f"{path}: data_types.grad_accum_dtype {given} with precision {recipe.precision} and"
            f" zero_optimization.stage {stage}: stages 2 and 3 can add gradients up in another type than that of the"
            " weights, 0 and 1 can not. Leave it out, or take another stage."
        )
    return given


def _faults(values: dict[str, Any], known: dict[str, Any], prefix: str) -> list[str]:
    """What is wrong with the keys and with the types of the values, one line each."""
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
                problems += _faults(value, known[key], path + ".")
        elif not (value == "auto" and (path in _FILLED_IN or prefix == "zero_optimization.")):
            wanted = _misfit(value, known[key])
            if wanted and path != "zero_optimization.stage":  # that one has a message of its own
                problems.append(f"{path}: is {json.dumps(value)}, should be {wanted}")
    return problems


def _misfit(value: Any, kind: Any) -> str:
    """What ``value`` should be instead, "" if it is."""
    if isinstance(kind, tuple):
        return "" if value in kind else " or ".join(json.dumps(each) for each in kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:  # 5e8 is a way to write a whole number
        return "" if number and value >= 0 and value == int(value) else "a whole number, 0 or more"
    if kind is float:
        return "" if number and value >= 0 else "a number, 0 or more"
    names = {bool: "true or false", str: "a text", list: "a list"}
    return "" if isinstance(value, kind) else names[kind]
