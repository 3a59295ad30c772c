"""A disk that is full or broken costs a checkpoint and never the run; of such a checkpoint nothing is left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pretrain
from model import tensor_file
from tests.training.runs import WITHOUT_EVALUATION, call, final_weights, numbers, train
from training import checkpoint, metrics
from training.checkpoint import checkpoints_in, find, newest
from training.metrics import read_events

pytestmark = pytest.mark.ranks

SETTINGS = ("steps=4", "checkpoint.every=1", "checkpoint.keep=9", WITHOUT_EVALUATION)


def full(*where: str, rank: int, what: str) -> Callable[[], None]:
    """A probe under which the disk is full for a rank, in the checkpoints whose names hold one of ``where``."""

    def probe() -> None:
        if os.environ["RANK"] != str(rank):
            return

        def refuse(path: str) -> None:
            if any(each in path for each in where):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        if what == "shard":
            original = tensor_file._write

            def write(descriptor: int, block: memoryview) -> None:
                path = os.readlink(f"/proc/self/fd/{descriptor}")
                original(descriptor, block[: len(block) // 2])  # some of it still fits
                refuse(path)
                original(descriptor, block[len(block) // 2 :])

            tensor_file._write = write
        elif what == "folder":
            make = Path.mkdir
            Path.mkdir = lambda path, *a, **k: (refuse(str(path)), make(path, *a, **k))[1]  # type: ignore[assignment, method-assign]
        else:
            text = checkpoint._write_synced
            checkpoint._write_synced = lambda path, *a: (  # type: ignore[assignment]
                refuse(str(path)) if path.name == what else None,
                text(path, *a),
            )[1]

    return probe


@pytest.mark.parametrize(
    ("what", "rank"),
    [("shard", 1), ("manifest.json", 0), *(
        pytest.param(what, 0, marks=pytest.mark.slow) for what in ("shard", "folder", "run.json")
    )],
)  # fmt: skip
def test_a_full_disk_is_told_leaves_nothing_and_is_tried_again(
    small_recipe: Path, tmp_path: Path, what: str, rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    probe = full("step-00000002", "step-00000003", rank=rank, what=what)
    train(small_recipe, tmp_path, *SETTINGS, ranks=2, stage=3, probe=probe)
    run = tmp_path / "small"
    assert [path.name[-1] for path in checkpoints_in(run / "checkpoints")] == ["4", "1"]
    assert not list(run.rglob("writing-*"))
    events = [(e["event"], e["step"]) for e in read_events(run) if e["event"].startswith("save")]
    assert events == [("save", 1), ("save_failed", 2), ("save_failed", 3), ("save", 4)]
    assert "step 2 could not be saved and training goes on" in (said := capfd.readouterr().out)
    assert f"rank {rank}: " in said and "No space left on device" in said
    assert newest(run / "checkpoints").faults == []  # type: ignore[union-attr]


def test_what_could_not_be_saved_at_the_end_is_an_error_that_names_the_last_good_one(
    small_recipe: Path, tmp_path: Path
) -> None:
    settings = [f"--set={each}" for each in SETTINGS]
    command = ["--recipe", small_recipe, "--runs", tmp_path, *settings]
    probe = full("step-00000003", "step-00000004", rank=1, what="shard")
    first, other = call(pretrain.main, *command, ranks=2, probe=probe)
    assert "step 4 could not be saved: rank 1: " in first.error and "No space left" in first.error
    assert "last good checkpoint (step 2, " in first.error and other.status == 2
    run = tmp_path / "small"
    assert find(run).manifest["step"] == 2
    first, other = call(pretrain.main, *command, ranks=2)
    assert first.status == other.status == 0 and "resuming from" in first.out
    whole = tmp_path / "whole"
    train(small_recipe, whole, *SETTINGS, ranks=2, stage=1)
    assert numbers(run)[-1]["loss"] == pytest.approx(numbers(whole / "small")[-1]["loss"], rel=1e-6)
    assert final_weights(run).keys() == final_weights(whole / "small").keys()


def test_a_disk_too_full_for_the_event_does_not_end_the_run(
    small_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse = full("step-00000001", rank=0, what="shard")

    def probe() -> None:
        refuse()
        original = metrics._append

        def append(file: Any, values: Any) -> None:
            if values.get("event") == "save_failed":
                raise OSError(errno.ENOSPC, "No space left on device")
            original(file, values)

        metrics._append = append

    train(small_recipe, tmp_path, *SETTINGS, "steps=2", ranks=1, stage=1, probe=probe)
    assert "nor could that be written to events.jsonl" in capfd.readouterr().out
    assert [path.name[-1] for path in checkpoints_in(tmp_path / "small" / "checkpoints")] == ["2"]


class SmallDisk:
    """A file system in memory with an end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("size=1g")

    def resize(self, size: int) -> None:
        self._mount(f"remount,size={size // 1024}k")

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", disk.folder], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full_ends_the_run_with_its_last_save_and_room_lets_it_go_on(
    small_recipe: Path, tmp_path: Path, small_disk: SmallDisk
) -> None:
    settings = [f"--set={each}" for each in SETTINGS]
    assert all(
        done.status == 0
        for done in call(pretrain.main, "--recipe", small_recipe, "--runs", tmp_path, *settings, ranks=2)
    )
    whole = tmp_path / "small"
    used = shutil.disk_usage(small_disk.folder)
    needed = sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    of_one = sum(file.stat().st_size for file in find(whole).path.rglob("*") if file.is_file())
    small_disk.resize(
        used.used + needed - of_one * 3 // 2
    )  # the first two checkpoints fit, and half of the third
    command = ["--recipe", small_recipe, "--runs", small_disk.folder, *settings]
    first, other = call(pretrain.main, *command, ranks=2)
    assert first.status == other.status == 2 and "No space left on device" in first.error
    assert "step 3 could not be saved and training goes on" in first.out
    run = small_disk.folder / "small"
    assert [path.name[-1] for path in checkpoints_in(run / "checkpoints")] == ["2", "1"]
    assert newest(run / "checkpoints").faults == []  # type: ignore[union-attr]
    assert not list(run.rglob("writing-*"))
    small_disk.resize(used.used + 2 * needed)
    first, other = call(pretrain.main, *command, ranks=2)
    assert first.status == other.status == 0, first.error
    mine, theirs = final_weights(run), final_weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
