"""A run is the same run however many ranks share a model: every task, every ZeRO stage, over tensor and data ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data.recipe import parse_recipe, read_recipe
from model.parallel.split import split_of, whole_shape
from tests.ranks import run_on_ranks
from tests.small_teacher import write_margin_recipe
from tests.training.reference import MARGINS, Reference, steps_of, train_plainly
from tests.training.runs import WITH_BTMLM, WITHOUT_EVALUATION, column, launched, relative, sharding
from training.config import Recipe
from training.engine import Engine
from training.metrics import read_metrics
from training.trainer import Trainer

pytestmark = pytest.mark.ranks
STEPS = 20
FEW = 4
BASE = (
    f"steps={STEPS}", WITHOUT_EVALUATION, "checkpoint.every=0", "log.every=100", "model.heads=4", *WITH_BTMLM,
    "batch.microbatch_tokens=2048", "optimizer.schedule=constant",
)  # fmt: skip
TASKS = ("mmlm", "tlm", "camlm", "btmlm", "translation_alignment", "mixed_alignment", *MARGINS)
# (tensor ranks, data ranks, ZeRO stage)
TOPOLOGIES = [(t, d, stage) for t, d in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1)) for stage in (0, 1, 3)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks, those with a teacher too."""
    return write_margin_recipe(tmp_path_factory.mktemp("tensor"))


@pytest.fixture(scope="module")
def reference(recipe: Path) -> Reference:
    """The first steps of the recipe, in one process, in float64."""
    return plainly(recipe, FEW)


@pytest.fixture(scope="module")
def long_reference(recipe: Path) -> Reference:
    return plainly(recipe, STEPS)


def plainly(path: Path, steps: int, *settings: str) -> Reference:
    read = parse_recipe(read_recipe(path, [*BASE, *settings]), Recipe)
    return train_plainly(read, steps_of(read, steps))


def run(
    recipe: Path,
    runs: Path,
    *settings: str,
    tensor: int,
    data: int,
    stage: int,
    probe: Callable[[Trainer], Any],
) -> list[Any]:
    """Train on ``tensor`` x ``data`` ranks; what ``probe`` says of each rank's Trainer when it is done."""

    def of_rank(group: object) -> Any:
        launched()
        raw = read_recipe(recipe, [*BASE, *settings, f"parallel.tensor={tensor}"])
        trainer = Trainer(parse_recipe(raw, Recipe), raw, sharding(stage), Path("ds.json"), runs)
        trainer.fit()
        return probe(trainer)

    return run_on_ranks(of_rank, tensor * data, timeout=300)


def whole_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Every float32 weight, put together from the parts of all ranks."""
    return {name: whole(trainer.engine, p) for name, p in trainer.engine._engine.module.named_parameters()}


def whole(engine: Engine, parameter: Any) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    own = parameter.detach().float() if engine.stage == 0 else safe_get_full_fp32_param(parameter)
    assert own is not None
    split, tensor = split_of(parameter), engine.world.tensor
    if split is None:
        return own.clone()
    parts = [torch.empty_like(own) for _ in range(tensor.size)]
    dist.all_gather(parts, own.contiguous(), group=tensor.group)
    found = own.new_full(whole_shape(parameter), math.nan)
    for rank, part in enumerate(parts):
        for place in split.parts(rank, tensor.size):
            there = found.narrow(split.dimension, place.whole, place.length)
            there.copy_(part.narrow(split.dimension, place.own, place.length))
    return found


def differences(
    steps: Sequence[dict[str, float]], found: dict[str, Tensor], truth: Reference
) -> dict[str, float]:
    """The largest of the losses, of the gradient norms, and of the weights of each parameter, relative."""
    wanted = truth.steps[: len(steps)]
    names = [name for name in wanted[0] if name.startswith("loss")]
    assert {f"loss/{task}" for task in TASKS} <= set(names)
    weights = [
        (found[name].double() - true).norm().item() / true.norm().item()
        for name, true in truth.weights.items()
        if true.any()
    ]
    return {
        "losses": max(relative(column(steps, name), column(wanted, name)) for name in names),
        "norms": relative(column(steps, "grad_norm"), column(wanted, "grad_norm")),
        "weights": max(weights),
    }


def check_parity(
    recipe: Path, runs: Path, truth: Reference, *settings: str, tensor: int, data: int, stage: int
) -> None:
    probed = run(recipe, runs, *settings, tensor=tensor, data=data, stage=stage, probe=whole_weights)
    for weights in probed[1:]:  # the same on every rank, bit by bit: what is whole too
        assert all(torch.equal(weights[name], tensor) for name, tensor in probed[0].items())
    found = differences(read_metrics(runs / "small"), probed[0], truth)
    print(f"tensor {tensor} data {data} ZeRO-{stage} {settings}: {found}")
    assert max(found.values()) <= 1e-5, found


@pytest.mark.parametrize(("tensor", "data", "sequence"), [(2, 1, "false"), (2, 2, "true")])
def test_a_run_over_tensor_ranks_is_that_of_one_process(
    recipe: Path, tmp_path: Path, reference: Reference, tensor: int, data: int, sequence: str
) -> None:
    settings = (f"steps={FEW}", f"parallel.sequence={sequence}")
    check_parity(recipe, tmp_path, reference, *settings, tensor=tensor, data=data, stage=3)
