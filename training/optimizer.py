"""The optimizer and the LayerNorm of the run; the only door of NVIDIA's apex, which is used where it is installed.

The package called ``apex`` on PyPI is a toolkit for web sites. It is recognised and refused, since its presence
means that somebody meant to install the other one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

import torch
from torch import nn

from data.recipe import UserError
from model.parallel.split import whole_shape
from training.config import OptimizerConfig

_APEX_HINT = (
    "NVIDIA's apex is built from source (https://github.com/NVIDIA/apex). Remove the other one with"
    " 'pip uninstall apex', or set optimizer.implementation to torch."
)
TOKEN_TABLE = "encoder.embedding.word.weight"


def apex_is_available() -> bool:
    """Whether NVIDIA's apex is installed.

    Raises:
        UserError: a package called apex is installed and it is not NVIDIA's.

    """
    if importlib.util.find_spec("apex") is None:
        return False
    if importlib.util.find_spec("apex.optimizers") is not None:
        return True
    try:
        summary = metadata("apex")["Summary"] or ""
    except PackageNotFoundError:
        summary = ""
    what = f" ({summary.strip()})" if summary else ""
    raise UserError(f"the installed package 'apex' is not NVIDIA's{what}. {_APEX_HINT}")


def use_apex(config: OptimizerConfig, device: torch.device) -> bool:
    """Whether apex's fused kernels are used: where asked for, or by "auto" on a GPU that has them."""
    if config.implementation == "torch":
        return False
    available = apex_is_available()
    if config.implementation == "auto":
        return available and device.type == "cuda"
    if not available:
        raise UserError(f"optimizer.implementation is apex, and apex is not installed. {_APEX_HINT}")
    if device.type != "cuda":
        raise UserError("optimizer.implementation is apex, and apex runs on GPUs only. Use auto or torch.")
    return True


def layer_norm_class(config: OptimizerConfig, device: torch.device) -> type[nn.Module]:
    """torch's LayerNorm, or apex's fused one."""
    if not use_apex(config, device):
        return nn.LayerNorm
    from apex.normalization import FusedLayerNorm

    return FusedLayerNorm


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; vectors and scalars (biases, LayerNorm, temperature) are not decayed.

    ``rate_factor`` of a group is its learning rate over that of the schedule.
    """
    table: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            kind = table if name == TOKEN_TABLE else matrices if len(whole_shape(parameter)) >= 2 else others
            kind.append(parameter)
    of_table = (config.table_learning_rate or config.learning_rate) / config.learning_rate
    groups = [
        {"params": table, "weight_decay": config.weight_decay, "rate_factor": of_table},
        {"params": matrices, "weight_decay": config.weight_decay, "rate_factor": 1.0},
        {"params": others, "weight_decay": 0.0, "rate_factor": 1.0},
    ]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
    if use_apex(config, device):
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, adam_w_mode=True, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)
