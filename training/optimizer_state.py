"""Where DeepSpeed keeps the float32 weights and the optimizer's state of each parameter, at every stage.

Live views of them, so that they are saved and filled in place. DeepSpeed's objects are passed in; what of them is
read here is private to DeepSpeed 0.19 and stands in this file alone:

    stage 3    a parameter is cut in equal stretches over the data ranks; those of a rank lie in flat sub-groups
    1 and 2    the parameters of a group lie in one flat tensor, which is cut over the data ranks
    0, bf16    every rank has a float32 tensor for each parameter, or with apex one for each group
    0, fp32    the optimizer's own, over the parameters themselves
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"
STATES = (WEIGHT, *MOMENTS)
COUNTS = ("global_steps", "global_samples", "skipped_steps")  # DeepSpeed's own, for people


class Stretch(NamedTuple):
    """Elements of one parameter of this tensor rank whose optimizer state this rank has."""

    name: str
    parameter: Tensor
    start: int  # the first of them in the flat parameter
    tensors: dict[str, Tensor]  # STATES -> (elements,), live


class _Place(NamedTuple):
    parameter: Tensor
    start: int
    elements: int
    master: Tensor  # what the optimizer knows, and what its state is kept under
    offset: int  # of the elements within it


def stretches(engine: Any) -> Iterator[Stretch]:
    """All that this rank has, in the model's order of parameters."""
    optimizer = engine.basic_optimizer
    found = {id(place.parameter): place for place in _places(engine)}
    for name, parameter in engine.module.named_parameters():
        place = found.get(id(parameter))
        if place is None or place.elements == 0:
            continue  # all of it is another rank's
        tensors = {WEIGHT: place.master, **_moments(optimizer, place.master)}
        yield Stretch(
            name,
            parameter,
            place.start,
            {
                state: tensor.detach().view(-1)[place.offset : place.offset + place.elements]
                for state, tensor in tensors.items()
            },
        )


def updates(engine: Any) -> int:
    """How often the optimizer has updated the weights."""
    optimizer = engine.basic_optimizer
    counts = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
    counts |= {int(group["step"]) for group in optimizer.param_groups if "step" in group}
    assert len(counts) <= 1, counts
    return counts.pop() if counts else 0


def set_updates(engine: Any, count: int) -> None:
    """Go on counting from ``count``, wherever this optimizer counts."""
    optimizer = engine.basic_optimizer
    for place in _places(engine):
        _moments(optimizer, place.master)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(count)
    if not isinstance(optimizer, torch.optim.AdamW):  # apex counts by group
        for group in optimizer.param_groups:
            group["step"] = count


def set_model_from_masters(engine: Any) -> None:
    """Bring the weights that the model computes with, on all ranks, to the float32 ones."""
    optimizer = engine.optimizer
    if optimizer is engine.basic_optimizer:
        return
    with torch.no_grad():
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):
            optimizer.checkpoint_event_prologue()
            for number in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
            optimizer.checkpoint_event_epilogue()
        elif hasattr(optimizer, "single_partition_of_fp32_groups"):
            optimizer.update_lp_params()
        else:
            for place in _places(engine):
                stretch = place.master.view(-1)[place.offset : place.offset + place.elements]
                place.parameter.data.copy_(stretch.view_as(place.parameter))


def _places(engine: Any) -> Iterator[_Place]:
    optimizer = engine.optimizer
    if optimizer is engine.basic_optimizer:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield _Place(parameter, 0, parameter.numel(), parameter, 0)
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for number, group in enumerate(optimizer.fp16_groups):
            offset = 0
            for parameter in group:
                length = parameter.partition_numel()
                start = length * dist.get_rank(parameter.ds_process_group)
                elements = max(0, min(length, parameter.ds_numel - start))
                master = optimizer.fp32_partitioned_groups_flat[number]
                yield _Place(parameter, start, elements, master, offset)
                offset += length
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        for number, master in enumerate(optimizer.single_partition_of_fp32_groups):
            begin = dist.get_rank(optimizer.real_dp_process_group[number]) * master.numel()
            # In the order in which they lie there, which round_robin_gradients makes another than the model's.
            order = optimizer.round_robin_bit16_groups[number], optimizer.round_robin_bit16_offsets[number]
            for parameter, first in zip(*order, strict=True):
                start = max(begin - first, 0)
                elements = min(begin + master.numel() - first, parameter.numel()) - start
                yield _Place(parameter, start, max(elements, 0), master, first + start - begin)
    elif hasattr(optimizer, "fp32_groups"):
        for parameters, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(parameters, masters, strict=True):
                yield _Place(parameter, 0, parameter.numel(), master, 0)
    else:
        for parameters, master in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
            offset = 0
            for parameter in parameters:
                yield _Place(parameter, 0, parameter.numel(), master, offset)
                offset += parameter.numel()


def _moments(optimizer: Any, master: Tensor) -> dict[str, Tensor]:
    """The moments that are kept under ``master``; as the first update would make them where it is still to come."""
    state = optimizer.state[master]
    if MOMENTS[0] not in state:
        for name in MOMENTS:
            state[name] = torch.zeros_like(master, memory_format=torch.preserve_format)
        if isinstance(optimizer, torch.optim.AdamW):
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
    return {name: state[name] for name in MOMENTS}
