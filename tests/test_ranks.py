"""The harness of multi-rank tests: results in order, the cause of a failure, no rank left behind."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from tests.ranks import run_on_ranks


@pytest.mark.ranks
def test_results_come_back_in_rank_order() -> None:
    def of_rank(group: ProcessGroup, factor: int) -> tuple[int, float, str]:
        number = torch.tensor(float(group.rank() * factor))
        dist.all_reduce(number, group=group)
        return group.rank(), float(number), os.environ["WORLD_SIZE"]

    assert run_on_ranks(of_rank, 3, 10) == [(0, 30.0, "3"), (1, 30.0, "3"), (2, 30.0, "3")]
    assert not dist.is_initialized()


@pytest.mark.ranks
def test_the_first_failing_rank_is_reported_although_the_others_wait_for_it() -> None:
    def of_rank(group: ProcessGroup) -> None:
        if group.rank() == 1:
            raise ValueError("the cause")
        dist.barrier(group=group)

    with pytest.raises(AssertionError, match=r"rank 1 failed:(?s:.)*ValueError: the cause"):
        run_on_ranks(of_rank, 2, timeout=20)


@pytest.mark.ranks
def test_a_rank_that_dies_without_a_word_is_reported() -> None:
    with pytest.raises(AssertionError, match=r"rank|exit codes"):
        run_on_ranks(lambda group: os._exit(7) if group.rank() == 0 else None, 2, timeout=20)


@pytest.mark.ranks
def test_a_rank_that_hangs_ends_with_the_timeout() -> None:
    with pytest.raises(AssertionError, match=r"did not finish in time"):
        run_on_ranks(lambda group: time.sleep(60 * group.rank()), 2, timeout=1)
