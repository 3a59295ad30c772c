"""A checkpoint is whole or it is named as damaged; nothing in one is executed; the newest sound one is always kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from data.recipe import UserError
from model.parallel.topology import Axis
from model.tensor_file import Sealed, TensorFile
from tests.training.runs import WITHOUT_EVALUATION, digests, numbers, train
from training import checkpoint
from training.checkpoint import DamagedCheckpoint, checkpoint_name, checkpoints_in, find, newest, verify
from training.fragments import Cut
from training.optimizer_state import STATES
from training.shards import Held, write_shard

SHARDS = ("rank-00000.safetensors", "rank-00001.safetensors")
STEPS = ("steps=3", "checkpoint.every=1", "checkpoint.keep=3", WITHOUT_EVALUATION)


@pytest.fixture(scope="module")
def saved_run(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two ranks with three checkpoints; never to be changed."""
    runs = tmp_path_factory.mktemp("saved")
    train(small_recipe, runs, *STEPS, ranks=2, stage=3)
    return runs / "small"


@pytest.fixture
def run(saved_run: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(saved_run, tmp_path / "small"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "one bit": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
}


def kinds(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_every_rank_s_shards_and_the_planner_and_says_so(saved_run: Path) -> None:
    assert [path.name for path in checkpoints_in(saved_run / "checkpoints")] == [
        checkpoint_name(step) for step in (3, 2, 1)
    ]
    newest_one = saved_run / "checkpoints" / "step-00000003"
    manifest = verify(newest_one)
    topology = {name: manifest[name] for name in ("step", "ranks", "tensor_ranks", "zero_stage")}
    assert topology == {"step": 3, "ranks": 2, "tensor_ranks": 1, "zero_stage": 3}
    assert manifest["engine"] == {"updates": 3, "global_steps": 3, "global_samples": 12, "skipped_steps": 0}
    assert set(kinds(newest_one)) == {*SHARDS, "run.json", "manifest.json"}
    assert (saved_run / "checkpoints" / "latest").read_text() == "step-00000003\n"
    state = json.loads((newest_one / "run.json").read_text())
    assert state["step"] == 3 and state["planner"]["step"] >= 4 and state["settings"]["seed"] == 3
    assert manifest["fingerprints"]["store"] == state["store"]


def test_the_ranks_share_the_writing_and_any_safetensors_library_opens_the_files(saved_run: Path) -> None:
    folder = saved_run / "checkpoints" / "step-00000003"
    sizes = [(folder / name).stat().st_size for name in SHARDS]
    assert max(sizes) < 1.05 * min(sizes)
    (whole,) = {
        sum(file.numel(key) for file in map(TensorFile, map(folder.joinpath, SHARDS)) for key in file.entries)
    }
    weights = dict(find(folder).weights())
    assert whole == 3 * sum(tensor.numel() for tensor in weights.values())
    for name in SHARDS:
        ours = TensorFile(folder / name)
        theirs = load_file(folder / name)
        assert theirs.keys() == ours.entries.keys()
        assert all(torch.equal(ours.read(key), theirs[key]) for key in theirs)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_the_one_before_is_taken(run: Path, damage: str) -> None:
    folder = run / "checkpoints"
    for name in kinds(folder / "step-00000003"):
        path = folder / "step-00000003" / name
        sound = path.read_bytes()
        DAMAGES[damage](path)
        with pytest.raises(DamagedCheckpoint, match=name):
            verify(path.parent)
        found = newest(folder)
        assert found is not None
        assert found.path.name == "step-00000002" and found.manifest["step"] == 2
        assert len(found.faults) == 1 and str(path) in found.faults[0]
        path.write_bytes(sound)
    assert newest(folder) == (folder / "step-00000003", verify(folder / "step-00000003"), [])


def test_all_damaged_or_gone_is_an_error_and_no_checkpoint_at_all_is_a_new_run(
    run: Path, tmp_path: Path
) -> None:
    folder = run / "checkpoints"
    for path in folder.glob("step-*"):
        flip(path / "run.json")
    with pytest.raises(UserError, match=r"none can be used(?s:.)*step-00000003(?s:.)*step-00000001"):
        newest(folder)
    for path in folder.glob("step-*"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="checkpoints were expected"):
        newest(folder)  # latest names one
    assert newest(tmp_path / "nothing") is None


@pytest.mark.parametrize("what", ["run", "run/checkpoints", "run/checkpoints/step-00000002"])
def test_a_run_its_checkpoints_and_one_of_them_can_be_named(saved_run: Path, what: str) -> None:
    path = saved_run / what.removeprefix("run").removeprefix("/")
    expected = "step-00000002" if what.endswith("2") else "step-00000003"
    assert find(path).path.name == expected


def test_a_folder_that_is_neither_run_nor_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run folder"):
        find(tmp_path)


class FakeEngine:
    """Writes one small tensor; the ranks are one."""

    stage = 1
    cuts: ClassVar[dict[str, Cut]] = {"weight": Cut((3,))}

    class world:
        first, process, processes, tensor = True, 0, 1, Axis()

    def save(self, path: Path) -> Sealed:
        tensors = dict.fromkeys(STATES, torch.arange(3.0))
        return write_shard(path, [Held("weight", self.cuts["weight"], 0, tensors)])

    def counts(self) -> dict[str, int]:
        return {"updates": 1}


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints_in(folder)]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    engine: Any = FakeEngine()

    def save(step: int, *keep: int) -> Path:
        saved = checkpoint.save(engine, tmp_path / "c", step, {"step": step}, *keep)
        assert not saved.faults
        return saved.path

    return save


def test_the_newest_are_kept(save: Callable[..., Path], tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        verify(save(step, 2))
    assert saved_steps(tmp_path / "c") == [4, 3]
    assert (tmp_path / "c" / "latest").read_text() == "step-00000004\n"


def test_every_n_th_is_kept_for_good(save: Callable[..., Path], tmp_path: Path) -> None:
    for step in range(1, 12):
        save(step, 2, 4)
    assert saved_steps(tmp_path / "c") == [11, 10, 8, 4]


def test_what_was_just_saved_stays_although_a_damaged_one_is_newer(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    save(4, 2)
    flip(save(6, 2) / SHARDS[0])
    save(5, 1)  # the run went on from 4
    assert saved_steps(tmp_path / "c") == [5]
    found = newest(tmp_path / "c")
    assert found is not None and found.path.name == "step-00000005" and not found.faults


def test_a_step_saved_again_replaces_its_damaged_checkpoint(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    flip(save(2, 2) / SHARDS[0])
    verify(save(2, 2))


def test_a_save_that_was_cut_off_is_no_checkpoint_and_is_cleared_by_the_next(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1, 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        save(2, 3)
    assert (tmp_path / "c" / "writing-step-00000002").exists()
    assert saved_steps(tmp_path / "c") == [1]
    save(3, 3)
    assert saved_steps(tmp_path / "c") == [3, 1]
    assert not list((tmp_path / "c").glob("writing-*"))


@pytest.mark.ranks
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(
    small_recipe: Path, run: Path, saved_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shard = run / "checkpoints" / "step-00000003" / SHARDS[1]
    flip(shard)
    train(small_recipe, run.parent, *STEPS, ranks=2, stage=3)
    said = capfd.readouterr().out
    assert f"passed over a damaged checkpoint: {shard}" in said
    assert "resuming from" in said and "step-00000002 (step 2 of 3)" in said
    assert numbers(run) == numbers(saved_run)
    verify(run / "checkpoints" / "step-00000003")
    theirs = digests(saved_run / "checkpoints" / "step-00000003")
    assert all(digests(run / "checkpoints" / "step-00000003")[name] == theirs[name] for name in SHARDS)
