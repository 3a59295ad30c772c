"""Bytes that a rank holds between steps and in the backward, by arithmetic: weights, gradients, optimizer, buffers.

What DeepSpeed makes of the parameters of one tensor rank at each ZeRO stage, over d data ranks (P elements, of w
bytes each in the weights' type and g in that in which gradients are added up):

    stage   weights      gradients    optimizer       and beside them
    0       P w          P w          8 P, or 12 P    in bf16 gradients in float32 while the optimizer steps
    1       P w          P w          12 P / d        one or two buckets; float32 gradients of a rank's part
    2       P w          P g / d      12 P / d        the same; the token table's gradient, whole
    3       P w / d      P g / d      12 P / d        one bucket; what is gathered; the token table's gradient, whole

Stages 1 to 3 keep float32 masters also where the weights are float32. Activations are training/activation_sizes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from training.optimizer import TOKEN_TABLE

WIDTHS = {"bf16": 2, "fp32": 4}
_STATES = 12  # float32 master and two moments

Shapes = Mapping[str, tuple[int, ...]]  # of the parameters of one tensor rank


class Zero(NamedTuple):
    """What of a resolved DeepSpeed dict decides about memory and traffic; the defaults are DeepSpeed's."""

    stage: int
    weight: int  # bytes of an element
    gradient: int  # in what the gradients of microbatches are added up
    bucket: int = 500_000_000  # elements
    buckets: int = 1
    persists: int = 100_000  # the largest parameter that stage 3 leaves whole
    lives: int = 1_000_000_000  # elements that stage 3 keeps gathered
    part: int = 1_000_000_000  # elements that stage 3 updates at a time
    optimizer_offloaded: bool = False
    weights_offloaded: bool = False

    @classmethod
    def of(cls, resolved: Mapping[str, Any], precision: str, stage: int | None = None) -> Zero:
        """From a dict of ``resolve_sharding``; ``stage`` instead of its own."""
        zero = resolved["zero_optimization"]
        stage = int(zero.get("stage", 0)) if stage is None else stage
        weight = WIDTHS[precision]
        given = resolved.get("data_types", {}).get("grad_accum_dtype")
        # Stages 0 and 1 add up in the type of the weights; training/sharding.py says why.
        wide = WIDTHS[given] if given else weight
        if given is None and stage >= 2 and resolved["gradient_accumulation_steps"] > 1:
            wide = 4

        def number(name: str, default: int) -> int:
            return int(zero.get(f"stage3_{name}", zero.get(name, default)))

        offloads = [
            zero.get(name, {}).get("device", "none") != "none"
            for name in ("offload_optimizer", "offload_param")
        ]
        return cls(
            stage,
            weight,
            wide if stage >= 2 else weight,
            int(zero.get("reduce_bucket_size", cls._field_defaults["bucket"])),
            2 if stage in (1, 2) and zero.get("overlap_comm", False) else 1,
            number("param_persistence_threshold", cls._field_defaults["persists"]),
            number("max_live_parameters", cls._field_defaults["lives"]),
            int(zero.get("sub_group_size", cls._field_defaults["part"])),
            offloads[0] and stage >= 1,
            offloads[1] and stage == 3,
        )


class States(NamedTuple):
    """Bytes of a rank."""

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    gathered: int  # at most
    updating: int  # while the optimizer steps, when the activations are gone
    offloaded: int = 0  # of these without the last, what lies in the memory of the host

    @property
    def resting(self) -> int:
        """What a backward ends with."""
        return self.weights + self.gradients + self.optimizer + self.buckets

    @property
    def of_host(self) -> int:
        """What of it all the host holds; an offloaded optimizer steps there."""
        return self.offloaded + (self.updating if self.offloaded else 0)


def states(shapes: Shapes, zero: Zero, data: int) -> States:
    """The bytes of each of ``data`` data ranks whose tensor rank has parameters of ``shapes``."""
    sizes = {name: elements(shape) for name, shape in shapes.items()}
    whole = sum(sizes.values())
    if zero.stage == 0:
        masters = whole * _STATES if zero.weight == 2 else whole * 8
        updating = whole * 4 if zero.weight == 2 else 0
        return States(whole * zero.weight, whole * zero.weight, masters, 0, 0, updating)
    if zero.stage < 3:
        groups = [sum(sizes[name] for name in names) for names in groups_of(shapes)]
        flat = [-(-group // (2 * data)) * 2 * data for group in groups]  # each begins where a wide load can
        held = sum(flat)
        gradients = held * zero.weight
        if zero.stage == 2:  # of another type they have a buffer of their own, that of a rank's part
            apart = zero.gradient != zero.weight
            gradients = (held // data if apart else _of_part(shapes, flat, data)) * zero.gradient
        found = States(
            held * zero.weight,
            gradients,
            held // data * _STATES,
            zero.buckets * zero.bucket * zero.weight,
            0,
            max(flat) // data * 4,
        )
    else:
        shards = sum(-(-size // data) for size in sizes.values())
        # A data rank alone has all of it, and nothing is gathered.
        stays = sum(size for size in sizes.values() if size <= zero.persists or data == 1)
        found = States(
            (shards + (stays if data > 1 else 0)) * zero.weight,
            shards * zero.gradient,
            shards * _STATES,
            zero.bucket * zero.weight,
            min(whole - stays, zero.lives) * zero.weight,
            min(shards, zero.part) * 4,
        )
    offloaded = found.weights if zero.weights_offloaded else 0
    if zero.optimizer_offloaded:
        offloaded += found.optimizer + (found.gradients if zero.stage >= 2 else 0)
    return found._replace(offloaded=offloaded)


def elements(shape: tuple[int, ...]) -> int:
    """How many numbers a tensor of ``shape`` holds."""
    product = 1
    for length in shape:
        product *= length
    return product


def groups_of(shapes: Shapes) -> list[list[str]]:
    """The parameters of each of the optimizer's groups (training/optimizer.py), in its order."""
    table = [name for name in shapes if name == TOKEN_TABLE]
    matrices = [name for name, shape in shapes.items() if len(shape) >= 2 and name not in table]
    others = [name for name in shapes if name not in {*table, *matrices}]
    return [table, matrices, others]


def _of_part(shapes: Shapes, flat: list[int], data: int) -> int:
    """Elements of the gradients that a rank of stage 2 keeps: those of parameters that reach into its part, whole.

    Of the middle rank, since the first and the last have fewer that reach over.
    """
    rank, kept = data // 2, 0
    for names, group in zip(groups_of(shapes), flat, strict=True):
        begin, end = rank * group // data, (rank + 1) * group // data
        at = 0
        for name in names:
            size = elements(shapes[name])
            if at < end and at + size > begin:
                kept += size
            at += size
    return kept
