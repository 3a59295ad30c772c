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
from tests.training.runs import WITH_BTMLM, WITHOUT_EVALUATION, column, launched, numbers, relative, sharding
from training.build import build_model, open_data
from training.config import Recipe
from training.engine import Engine, join_world
from training.metrics import read_evaluations, read_metrics
from training.optimizer import build_optimizer
from training.sharding import read_sharding, resolve_sharding
from training.trainer import Trainer

pytestmark = pytest.mark.ranks
STEPS = 20
FEW = 3
# Epsilon: with the smallest, Adam makes a whole step of the float32 rounding of a gradient that is all but zero.
BASE = (
    f"steps={STEPS}", WITHOUT_EVALUATION, "checkpoint.every=0", "log.every=100", "model.heads=4", *WITH_BTMLM,
    "batch.microbatch_tokens=2048", "optimizer.schedule=constant", "optimizer.epsilon=1e-3",
)  # fmt: skip
TASKS = (
    "mmlm", "tlm", "camlm", "btmlm", "translation_alignment", "mixed_alignment", "triplet_alignment", *MARGINS,
)  # fmt: skip
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
    values: dict[str, Any] | None = None,
) -> list[Any]:
    """Train on ``tensor`` x ``data`` ranks; what ``probe`` says of each rank's Trainer when it is done."""

    def of_rank(group: object) -> Any:
        launched()
        raw = read_recipe(recipe, [*BASE, *settings, f"parallel.tensor={tensor}"])
        trainer = Trainer(parse_recipe(raw, Recipe), raw, values or sharding(stage), Path("ds.json"), runs)
        trainer.fit()
        return probe(trainer)

    return run_on_ranks(of_rank, tensor * data, timeout=900)


def whole_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Every float32 weight, put together from the parts of all ranks."""
    return {name: whole(trainer.engine, p) for name, p in trainer.engine._engine.module.named_parameters()}


def whole(engine: Engine, parameter: Any) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    own = parameter.detach().float() if engine.stage == 0 else safe_get_full_fp32_param(parameter)
    if engine.stage == 3:  # sharded over the data axis alone
        assert dist.get_world_size(parameter.ds_process_group) == engine.world.ranks
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
    """Relative: the largest of the losses and of the gradient norms; all weights as one vector; the worst parameter."""
    wanted = truth.steps[: len(steps)]
    names = [name for name in wanted[0] if name.startswith("loss")]
    assert {f"loss/{task}" for task in TASKS} <= set(names)
    norms = {
        name: ((found[name].double() - true).norm().item(), true.norm().item())
        for name, true in truth.weights.items()
        if true.any()
    }
    return {
        "losses": max(relative(column(steps, name), column(wanted, name)) for name in names),
        "norms": relative(column(steps, "grad_norm"), column(wanted, "grad_norm")),
        "weights": math.hypot(*(off for off, _ in norms.values()))
        / math.hypot(*(of for _, of in norms.values())),
        "parameter": max(off / of for off, of in norms.values()),
    }


def check_parity(
    recipe: Path,
    runs: Path,
    truth: Reference,
    *settings: str,
    tensor: int,
    data: int,
    stage: int,
    values: dict[str, Any] | None = None,
) -> None:
    probed = run(
        recipe, runs, *settings, tensor=tensor, data=data, stage=stage, probe=whole_weights, values=values
    )
    for weights in probed[1:]:  # the same on every rank, bit by bit: what is whole too
        assert all(torch.equal(weights[name], tensor) for name, tensor in probed[0].items())
    found = differences(read_metrics(runs / "small"), probed[0], truth)
    print(f"tensor {tensor} data {data} ZeRO-{stage} {settings}: {found}")
    # The worst is a bias that began at zero: its norm is what twenty steps added, and so is its error.
    assert found.pop("parameter") <= 2e-5, found
    assert max(found.values()) <= 1e-5, found


@pytest.mark.parametrize(("tensor", "data", "sequence"), [(2, 1, "false"), (2, 2, "true")])
def test_a_run_over_tensor_ranks_is_that_of_one_process(
    recipe: Path, tmp_path: Path, reference: Reference, tensor: int, data: int, sequence: str
) -> None:
    settings = (f"steps={FEW}", f"parallel.sequence={sequence}")
    check_parity(recipe, tmp_path, reference, *settings, tensor=tensor, data=data, stage=3)


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "data", "stage"), TOPOLOGIES)
def test_so_it_is_over_twenty_steps_at_every_topology_and_stage(
    recipe: Path, tmp_path: Path, long_reference: Reference, tensor: int, data: int, stage: int
) -> None:
    check_parity(recipe, tmp_path, long_reference, tensor=tensor, data=data, stage=stage)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["cpu", "zero1", "zero3", "zero3_offload"])
def test_so_it_is_with_the_files_of_the_project(
    recipe: Path, tmp_path: Path, reference: Reference, file: str
) -> None:
    values = read_sharding(Path(f"ds_configs/{file}.json"))
    stage = values["zero_optimization"]["stage"]
    check_parity(recipe, tmp_path, reference, f"steps={FEW}", tensor=2, data=2, stage=stage, values=values)


@pytest.fixture(scope="module")
def in_bfloat16(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The steps of one process in bfloat16."""
    runs = tmp_path_factory.mktemp("bfloat16")
    run(recipe, runs, "precision=bf16", tensor=1, data=1, stage=1, probe=lambda trainer: None)
    return read_metrics(runs / "small")


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "data", "stage"), [(2, 1, 0), (2, 1, 1), (2, 2, 3)])
def test_bfloat16_over_tensor_ranks_is_that_of_one_process_within_its_rounding(
    recipe: Path, tmp_path: Path, in_bfloat16: list[dict[str, float]], tensor: int, data: int, stage: int
) -> None:
    """One process in bfloat16 is as far from float64: 1e-3 in the loss, 2.4e-2 in the smallest task loss."""
    run(recipe, tmp_path, "precision=bf16", tensor=tensor, data=data, stage=stage, probe=lambda trainer: None)
    steps = read_metrics(tmp_path / "small")
    found = {
        name: relative(column(steps, name), column(in_bfloat16, name))
        for name in ("loss", *(f"loss/{task}" for task in TASKS), "grad_norm")
    }
    print(f"tensor {tensor} data {data} ZeRO-{stage} bfloat16: {found}")
    assert found["loss"] <= 2e-3 and max(found.values()) <= 3e-2, found


def test_dropout_evaluation_and_a_vocabulary_that_does_not_divide_are_those_of_one_rank(
    recipe: Path, tmp_path: Path
) -> None:
    settings = (
        "steps=2", "model.dropout=0.1", "model.vocabulary_size=2003", "batch.microbatch_tokens=4096",
        "evaluation={masked: [test], maximum_rows: 2, before: false, retrieval: {test: {corpus: test}}}",
    )  # fmt: skip
    found = []
    for tensor in (1, 2):
        runs = tmp_path / str(tensor)
        weights, *others = run(recipe, runs, *settings, tensor=tensor, data=1, stage=3, probe=whole_weights)
        for other in others:
            assert all(torch.equal(other[name], weight) for name, weight in weights.items())
        scores = read_evaluations(runs / "small")[2]
        assert {"retrieval/test/mean", "masked/camlm/accuracy", "masked/btmlm/loss"} <= set(scores)
        found.append((numbers(runs / "small"), scores, weights))
    (steps, scores, weights), (same_steps, same_scores, same_weights) = found
    for mine, theirs in zip([*steps, scores], [*same_steps, same_scores], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-6)
    for name, weight in weights.items():
        assert (same_weights[name] - weight).norm() <= 1e-5 * max(weight.norm().item(), 1.0), name


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (0, "fp32"),
        (3, "fp32"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((1, "fp32"), (2, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16"))
        ),
    ],
)
def test_a_part_of_the_gradient_that_is_not_finite_stops_the_step_on_every_rank(
    small_recipe: Path, stage: int, precision: str
) -> None:
    settings = [f"precision={precision}", "parallel.tensor=2", "batch.microbatch_tokens=4096"]
    read = parse_recipe(read_recipe(small_recipe, settings), Recipe)
    ((batch,),) = steps_of(read, 1)

    def of_rank(group: Any) -> list[tuple[bool, bool, bool]]:
        launched()
        world = join_world(2)
        model, _ = build_model(read, open_data(read), tensor=world.tensor)
        spoilt = [1.0]
        if group.rank() == 1:  # of this rank's inner units alone
            part = model.encoder.layers[0].feed_forward.inner.bias
            assert split_of(part) is not None
            part.register_hook(lambda gradient: gradient * spoilt[0])
        optimizer = build_optimizer(model.named_parameters(), read.optimizer, world.device)
        resolved = resolve_sharding(sharding(stage), Path("ds.json"), read, Path("r.yaml"), world.ranks)
        engine = Engine(model, optimizer, resolved, world)
        weight = dict(engine._engine.module.named_parameters())["head.bias"]
        outcomes = []
        for spoilt[0] in (1.0, math.nan, math.inf, 1.0):
            before = whole(engine, weight)
            output = engine(batch)
            engine.backward(output.prediction_total / len(batch.targets) + output.inverse_temperature)
            outcome = engine.step(1e-3)
            changed = not torch.equal(before, whole(engine, weight))
            outcomes.append((outcome.skipped, math.isfinite(outcome.gradient_norm), changed))
        return outcomes

    for outcomes in run_on_ranks(of_rank, 2):
        assert outcomes == [
            (False, True, True),
            (True, False, False),
            (True, False, False),
            (False, True, True),
        ]
