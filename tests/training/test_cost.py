"""Operations by arithmetic against those that torch counts in a real forward and backward, and their times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.recipe import parse_recipe, read_recipe
from model.config import EncoderConfig
from model.pretraining import PretrainingModel
from tests.training.live_bytes import IDS, batch_of, contents_of, recipe_of
from training.activation_sizes import Contents, Cutting
from training.build import encoder_config
from training.config import Recipe
from training.cost import GPUS, Machine, Work, work_of
from training.plan import data_ranks_of, parts_of, step_work
from training.sharding import read_sharding, resolve_sharding
from training.sizes import Zero
from training.traffic import Passes, messages_of_tensor, messages_of_zero

SHAPE = EncoderConfig(vocabulary_size=IDS, layers=3, width=64, heads=4, feed_forward=160, positions=140)
ZERO = Zero(3, 4, 4, persists=0)


ONE, WHOLE = Passes(1), Cutting()


def work(contents: Contents, cutting: Cutting = WHOLE, passes: Passes = ONE, data: int = 1) -> Work:
    return work_of(SHAPE, {"weight": (1000, 10)}, contents, cutting, passes, ZERO, data, 0.0, 0.0)


def of_sum(total: Any, left: Any, right: Any, **_: Any) -> int:
    """Of ``total += left @ right``, which torch leaves out."""
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lengths", [(20, 20, 31, 31, 128, 90), (7,) * 40])
def test_operations_are_those_that_torch_counts(
    tmp_path: Path, lengths: tuple[int, ...], checkpointing: bool
) -> None:
    batch = batch_of(lengths, 2 * sum(lengths) + 30, 1)
    contents = contents_of(batch, recipe_of(tmp_path), 1)
    model = PretrainingModel(SHAPE, checkpoint_layers=checkpointing)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: of_sum}) as counter:
        model(batch).prediction_total.backward()
    found = work(contents._replace(pairs=0), Cutting(checkpointing=checkpointing))
    assert found.operations == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_a_pass_without_gradient_is_a_third_of_one_with() -> None:
    contents = Contents(4096, 4096, 0, 4096, 64, 0, squares=4096 * 64, generated=4096)
    plain, pool = work(contents), work(contents, passes=Passes(1, pool=True))
    assert 3 * pool.layers == 4 * plain.layers and 3 * pool.attention == 4 * plain.attention
    written = work(contents, passes=Passes(1, generation=True))
    assert written.head > plain.head
    # The last layer goes on with a third of the tokens behind its attention.
    behind = SHAPE.width**2 + 2 * SHAPE.width * SHAPE.feed_forward
    left_out = 2 * (4096 - 4096 // 3) * behind
    assert written.layers - plain.layers == plain.layers / 3 - left_out
    assert work(contents, passes=Passes(5)).layers == 5 * plain.layers


def test_tensor_ranks_share_the_products_and_data_ranks_the_optimizer() -> None:
    contents = Contents(4096, 4096, 500, 0, 0, 0, squares=4096 * 64)
    whole, half = work(contents), work(contents, Cutting(tensor=2))
    assert whole.layers == 2 * half.layers and whole.attention == 2 * half.attention
    assert work(contents, data=4).updated * 4 == whole.updated


def test_messages() -> None:
    shapes = {"large": (1000, 1000), "small": (10,)}
    zero = Zero(3, 2, 2, bucket=500_000, persists=100)
    assert messages_of_zero(shapes, zero, 1, Passes(2)) == 0
    # Of both microbatches: three buckets of gradients, the large one gathered for forward and backward; what stays.
    assert messages_of_zero(shapes, zero, 4, Passes(2)) == 2 * (3 + 2) + 1
    assert messages_of_zero(shapes, zero._replace(stage=1), 4, Passes(2)) == 3 + 1
    assert messages_of_tensor(SHAPE, Cutting(), Passes(2)) == 0
    assert messages_of_tensor(SHAPE, Cutting(tensor=2), Passes(2)) == 2 * 2 * 3 * 2


def test_seconds_are_the_sum_of_the_parts() -> None:
    machine = Machine(1e9, 2e9, 4e9, 1e9, 1e-3, network=1e6, inside=1e8, message=1e-2)
    amounts = Work(1e9, 1e9, 1e9, 5e8, 5e8, 10, sent=1e6, shared=1e8, messages=7)
    assert machine.parts(amounts) == pytest.approx(
        {"layers": 1, "head": 0.5, "attention": 0.25, "memory": 1, "calls": 0.01, "messages": 2.07}
    )
    assert machine.seconds(amounts) == pytest.approx(4.83)
    inside, outside = (GPUS["A100 80 GB"].machine(ranks, 0.5) for ranks in (8, 9))
    assert inside.network > outside.network and inside.layers == outside.layers == 156e12


def test_more_gpus_for_the_same_step_take_less_time_each() -> None:
    path = Path("ds_configs/zero3.json")
    raw = read_recipe("recipes/base.yaml")
    recipe = parse_recipe(raw, Recipe)

    def at(world: int) -> Work:
        ranks = data_ranks_of(recipe, world)
        resolved = resolve_sharding(read_sharding(path), path, recipe, raw.path, ranks)
        return step_work(
            recipe, resolved, parts_of(recipe, encoder_config(recipe, IDS, 0), resolved, "cuda"), ranks
        )

    few, many = at(8), at(16)
    # With two microbatches a rank the sentences are run once more, for the pool.
    assert 2 < few.layers / many.layers < 2 * 4 / 3 and few.messages > many.messages > 0
