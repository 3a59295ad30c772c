"""The table of splits: how each parameter of a PretrainingModel is cut over tensor ranks; and the cutting.

The modules of the model are written whole. ``cut`` replaces those of the table by ones that hold a part and talk to
the other ranks; all else is whole on every rank, and every rank computes the same with it:

    tokens ─▶ word │ + position + language, norm │ projection ▶ heads ▶ output │ + norm │ inner ▶ gelu ▶ outer │ + norm
              cut           whole                            cut                whole             cut            whole

With ``rows`` (sequence parallelism) what is whole above is cut too, by the rows of the stream: every rank has its
own tokens there.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from model.memory import take_memory
from model.parallel.collectives import all_reduce
from model.parallel.embedding import VocabularyEmbedding
from model.parallel.linear import ColumnLinear, RowLinear
from model.parallel.random import OwnRowsDropout
from model.parallel.split import Split
from model.parallel.topology import Axis

# Name of a parameter: the dimension in which it is cut, and of how many blocks it consists there.
SPLITS = {
    "encoder.embedding.word.weight": (0, 1),  # ids
    "encoder.layers.*.attention.projection.*": (0, 3),  # heads of queries, of keys, of values
    "encoder.layers.*.attention.output.weight": (1, 1),  # heads
    "encoder.layers.*.feed_forward.inner.*": (0, 1),  # inner units
    "encoder.layers.*.feed_forward.outer.weight": (1, 1),  # inner units
    "head.bias": (0, 1),  # ids
}
# Whole parameters that with ``rows`` see only a rank's own tokens: their gradients are summed over the ranks.
ON_OWN_ROWS = (
    "encoder.embedding.position.weight",
    "encoder.embedding.language.weight",
    "encoder.embedding.norm.*",
    "encoder.layers.*.attention.output.bias",
    "encoder.layers.*.attention_norm.*",
    "encoder.layers.*.feed_forward.outer.bias",
    "encoder.layers.*.feed_forward_norm.*",
)


def planned_split(name: str, shape: tuple[int, ...]) -> Split | None:
    """How the whole parameter ``name`` of ``shape`` is cut; None: not at all."""
    for pattern, (dimension, blocks) in SPLITS.items():
        if fnmatchcase(name, pattern):
            return Split(dimension, shape[dimension], blocks)
    return None


def cut(model: nn.Module, axis: Axis, device: torch.device, *, rows: bool) -> None:
    """Cut the modules of ``model``, which stands on the meta device, and give it memory on ``device``, not yet filled.

    Every parameter that is cut gets the attributes ``tensor_split`` and, for DeepSpeed's norm of the gradient,
    ``tensor_model_parallel``.
    """
    splits = {name: planned_split(name, tuple(whole.shape)) for name, whole in model.named_parameters()}
    for name, module in list(model.named_modules()):
        own = _part_of(module, splits.get(f"{name}.weight"), axis, rows)
        if own is not None:
            _put(model, name, own)
    for name in ("head.bias",):  # of a module that stays
        split = splits[name]
        assert split is not None
        whole = model.get_parameter(name).detach()
        _put(model, name, nn.Parameter(split.take(whole, axis.rank, axis.size)))
    take_memory(model, device)
    for name, parameter in model.named_parameters():
        split = splits[name]
        if split is not None:
            parameter.tensor_split = split  # type: ignore[assignment, method-assign]
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
        elif rows and any(fnmatchcase(name, pattern) for pattern in ON_OWN_ROWS):
            parameter.register_hook(functools.partial(_sum_gradient, axis=axis))


def _put(model: nn.Module, name: str, what: nn.Module | nn.Parameter) -> None:
    """Let ``model`` have ``what`` under ``name``."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, what)


def _part_of(module: nn.Module, split: Split | None, axis: Axis, rows: bool) -> nn.Module | None:
    """What stands in the place of ``module``, whose weight is cut by ``split``; None: it stays."""
    if isinstance(module, nn.Dropout) and rows:
        return OwnRowsDropout(module.p, axis)
    if split is None:
        return None
    if isinstance(module, nn.Embedding):
        return VocabularyEmbedding(module.num_embeddings, module.embedding_dim, axis, rows=rows)
    assert isinstance(module, nn.Linear)
    kind = ColumnLinear if split.dimension == 0 else RowLinear
    return kind(module.in_features, module.out_features, axis, rows=rows)


def _sum_gradient(gradient: Tensor, axis: Axis) -> Tensor:
    return all_reduce(gradient, axis)
