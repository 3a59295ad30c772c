"""Tensor ranks of one data rank get the same bytes and each its part of a folder; what can not be shared is refused."""

from __future__ import annotations

import multiprocessing
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.microbatch import Microbatch
from data.recipe import UserError, parse_recipe, read_recipe
from data.stream import BatchStream
from data.tally import Tally
from model.huggingface import write_folder
from model.parallel.split import split_of
from model.parallel.topology import Axis
from tests.ranks import run_on_ranks
from tests.training.runs import launched
from training.build import build_model, maker_of, open_data, planner_of
from training.config import Recipe
from training.engine import join_world
from training.sharding import data_ranks
from training.shared_batches import SharedBatches
from training.step import sum_tallies

pytestmark = pytest.mark.ranks


@pytest.mark.parametrize("workers", [0, 1])
def test_one_reader_for_each_data_rank_and_its_tensor_ranks_get_the_same_bytes(
    small_recipe: Path, workers: int
) -> None:
    read = parse_recipe(read_recipe(small_recipe, [f"workers={workers}"]), Recipe)
    steps = 3

    def of_rank(group: Any) -> tuple[bool, list[bytes], dict[str, Any]]:
        launched()
        # A rank of the tests is a daemon, which may have no workers.
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
        world = join_world(2)
        data = open_data(read)
        planner = planner_of(read, data)
        opened = []

        def open_stream() -> BatchStream:
            opened.append(True)
            return BatchStream(
                planner,
                maker_of(read),
                microbatch_tokens=1024,
                rank=world.rank,
                ranks=world.ranks,
                workers=workers,
            )

        batches = SharedBatches(open_stream, planner, world.tensor, world.device)
        found = []
        for step in range(1, steps + 1):
            microbatches = batches.next()
            found.append(pickle.dumps([microbatch.arrays for microbatch in microbatches]))
            tally, _ = sum_tallies(microbatches, [], world.tensor)
            planner.feedback(step, tally[:, Tally.TOKENS])
        batches.close()
        return bool(opened), found, planner.state()

    ranks = run_on_ranks(of_rank, 4, timeout=120)
    assert [opened for opened, _, _ in ranks] == [True, False, True, False]
    bytes_of = [found for _, found, _ in ranks]
    assert bytes_of[0] == bytes_of[1] and bytes_of[2] == bytes_of[3]
    assert all(one != other for one, other in zip(bytes_of[0], bytes_of[2], strict=True))
    states = [state for _, _, state in ranks]
    assert all(state == states[0] for state in states)


def test_tallies_count_a_data_rank_once_and_flags_of_any_rank_are_heard() -> None:
    def of_rank(group: Any) -> tuple[list[list[int]], list[bool]]:
        launched()
        world = join_world(2)
        tally = np.full((2, len(Tally)), 10**world.rank)
        rank = group.rank()
        return_tally, flags = sum_tallies(
            [Microbatch({}, tally), Microbatch({}, tally)], [rank == 1, rank == 2, False], world.tensor
        )
        return return_tally.tolist(), flags

    for tally, flags in run_on_ranks(of_rank, 4):
        assert tally == [[22] * len(Tally)] * 2
        assert flags == [True, True, False]


def test_a_folder_to_start_from_is_taken_part_by_part(small_recipe: Path, tmp_path: Path) -> None:
    read = parse_recipe(read_recipe(small_recipe), Recipe)
    data = open_data(read)
    whole_model, _ = build_model(read, data)
    folder = tmp_path / "encoder"
    tokenizer = data.store.tokenizer_folder
    write_folder(
        whole_model.state_dict(), whole_model.config, folder, tokenizer_folder=tokenizer, maximum_tokens=64
    )
    other = parse_recipe(read_recipe(small_recipe, ["seed=9", f"model={{start_from: {folder}}}"]), Recipe)
    weights = dict(whole_model.named_parameters())

    def of_rank(group: Any) -> None:
        axis = Axis.of(group)
        model, fresh = build_model(other, data, tensor=axis)
        assert not fresh
        for name, own in model.named_parameters():
            split = split_of(own)
            true = weights[name] if split is None else split.take(weights[name], axis.rank, axis.size)
            assert torch.equal(own, true), name

    run_on_ranks(of_rank, 2)
    with pytest.raises(
        UserError, match=r"parallel\.tensor, with the model of .*encoder: heads 2 can not .* by 1, 2$"
    ):
        build_model(other, data, tensor=Axis(0, 4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["parallel.tensor=4"],
            "parallel.tensor: heads 2 can not be shared equally by 4 tensor ranks.* by 1, 2",
        ),
        (
            ["parallel.tensor=2", "model.feed_forward=33"],
            "feed_forward 33 can not be shared equally .* by 1$",
        ),
        (["parallel.sequence=true"], "parallel.sequence shares tokens among tensor ranks"),
        (["parallel.tensors=2"], "tensors.*tensor"),
        (["parallel.tensor=0"], "parallel.tensor"),
    ],
)
def test_what_can_not_be_shared_is_refused_with_what_could(
    small_recipe: Path, settings: list[str], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe(read_recipe(small_recipe, settings), Recipe)
    assert re.search(words, str(refused.value), re.DOTALL | re.MULTILINE)


def test_ranks_that_form_no_whole_models_are_refused(small_recipe: Path) -> None:
    read = parse_recipe(read_recipe(small_recipe, ["parallel.tensor=2"]), Recipe)
    assert data_ranks(read, 6) == 3
    with pytest.raises(
        UserError, match=r"parallel.tensor 2: 3 rank\(s\) can not form models of 2 ranks each"
    ):
        data_ranks(read, 3)
