"""Several ranks on one machine: forked processes joined by gloo."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_on_ranks(function: Callable[..., Any], ranks: int, *arguments: Any, timeout: float = 60) -> list[Any]:
    """Call ``function(group, *arguments)`` on ``ranks`` forked processes; return its results in rank order.

    ``group`` is the process group of them all; RANK, LOCAL_RANK and WORLD_SIZE are set as a launcher would.
    Forking saves each rank the import of torch (and takes any function, also a local one); each computes with
    one thread. Tensors come back as values. The traceback of the first rank that fails is raised here as
    AssertionError, after the others are ended; so is a timeout (seconds).
    """
    with tempfile.TemporaryDirectory() as folder:
        fork = multiprocessing.get_context("fork")
        processes = [
            fork.Process(
                target=_run_rank, args=(function, rank, ranks, Path(folder), timeout, arguments), daemon=True
            )
            for rank in range(ranks)
        ]
        gc.freeze()  # else the first search for garbage in a rank would copy every page that it shares with the others
        for process in processes:
            process.start()
        gc.unfreeze()
        try:
            _wait(processes, Path(folder), time.monotonic() + timeout)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [pickle.loads((Path(folder) / f"result{rank}").read_bytes()) for rank in range(ranks)]


def _run_rank(
    function: Callable[..., Any],
    rank: int,
    ranks: int,
    folder: Path,
    timeout: float,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout),
        )
        result = function(dist.group.WORLD, *arguments)
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        dist.barrier()  # a rank that leaves early would fail the others
        dist.destroy_process_group()
    except BaseException:
        failure = folder / f"unfinished{rank}"
        failure.write_text(traceback.format_exc())
        failure.rename(folder / f"failure{rank}")
        os._exit(1)
    os._exit(0)  # without the parent's exit handlers


def _wait(processes: list[Any], folder: Path, deadline: float) -> None:
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            break
        if time.monotonic() > deadline:
            alive = [rank for rank, process in enumerate(processes) if process.is_alive()]
            raise AssertionError(f"ranks {alive} did not finish in time")
        time.sleep(0.01)
    # The first to fail is the cause; the others then fail because it is gone.
    failures = sorted(folder.glob("failure*"), key=lambda path: path.stat().st_mtime_ns)
    if failures:
        rank = failures[0].name.removeprefix("failure")
        raise AssertionError(f"rank {rank} failed:\n{failures[0].read_text()}")
    died = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
    if died:
        raise AssertionError(f"ranks ended without a word, exit codes {died}")
