"""A checkpoint is whole or it is named as damaged; nothing in one is executed; the newest sound one is always kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.recipe import UserError
from data.store import digest_of_values, sha256_of
from tests.training.runs import WITHOUT_EVALUATION, call, digests, numbers, train
from training import checkpoint
from training.checkpoint import DamagedCheckpoint, checkpoint_name, checkpoints_in, find, newest, verify
from training.export import main as export_main

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
    assert manifest["step"] == 3 and manifest["ranks"] == 2 and manifest["zero_stage"] == 3
    shards = [
        f"zero_pp_rank_{r}_mp_rank_00_{what}.pt" for r in (0, 1) for what in ("model_states", "optim_states")
    ]
    assert set(kinds(newest_one)) == {*shards, "run.json", "manifest.json"}
    assert (saved_run / "checkpoints" / "latest").read_text() == "step-00000003\n"
    state = json.loads((newest_one / "run.json").read_text())
    assert state["step"] == 3 and state["planner"]["step"] >= 4 and state["settings"]["seed"] == 3
    assert not list(saved_run.rglob("*.py"))  # DeepSpeed leaves a script that opens anything


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
        chosen, manifest, faults = found
        assert chosen.name == "step-00000002" and manifest["step"] == 2
        assert len(faults) == 1 and str(path) in faults[0]
        path.write_bytes(sound)
    assert newest(folder) == (folder / "step-00000003", verify(folder / "step-00000003"), [])


def test_a_file_that_was_not_saved_is_not_opened(run: Path) -> None:
    shard = run / "checkpoints" / "step-00000003" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.copy(shard, shard.with_name("zero_pp_rank_2_mp_rank_00_optim_states.pt"))
    with pytest.raises(DamagedCheckpoint, match="rank_2.*was not saved"):
        verify(shard.parent)


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
    assert find(path).name == expected


def test_a_folder_that_is_neither_run_nor_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run folder"):
        find(tmp_path)


class FakeEngine:
    """Writes one small shard; the ranks are one."""

    stage = 1

    class world:
        first, ranks = True, 1

    def save(self, folder: Path, tag: str) -> None:
        (folder / tag).mkdir()
        (folder / tag / "shard.pt").write_bytes(tag.encode())


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints_in(folder)]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setattr(checkpoint.dist, "barrier", lambda: None)
    engine: Any = FakeEngine()
    return lambda step, keep: checkpoint.save(engine, tmp_path / "c", step, {"step": step}, keep)


def test_the_newest_are_kept(save: Callable[..., Path], tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        verify(save(step, 2))
    assert saved_steps(tmp_path / "c") == [4, 3]
    assert (tmp_path / "c" / "latest").read_text() == "step-00000004\n"


def test_what_was_just_saved_stays_although_a_damaged_one_is_newer(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    save(4, 2)
    flip(save(6, 2) / "shard.pt")
    save(5, 1)  # the run went on from 4
    assert saved_steps(tmp_path / "c") == [5]
    found = newest(tmp_path / "c")
    assert found is not None and found[0].name == "step-00000005" and not found[2]


def test_a_step_saved_again_replaces_its_damaged_checkpoint(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    flip(save(2, 2) / "shard.pt")
    verify(save(2, 2))


def test_a_save_that_was_cut_off_is_no_checkpoint_and_is_cleared_by_the_next(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1, 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "_seal", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        save(2, 3)
    assert (tmp_path / "c" / "writing-step-00000002").exists()
    assert saved_steps(tmp_path / "c") == [1]
    save(3, 3)
    assert saved_steps(tmp_path / "c") == [3, 1]
    assert not list((tmp_path / "c").glob("writing-*"))


class Payload:
    """What an attacker would plant: opening it as a pickle makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def plant(checkpoint_folder: Path, name: str, trace: Path) -> None:
    """Put a payload into a shard and seal the manifest again, as an attacker would."""
    content = torch.load(checkpoint_folder / name, weights_only=False)
    content["payload"] = Payload(trace)
    torch.save(content, checkpoint_folder / name)
    path = checkpoint_folder / "manifest.json"
    manifest = json.loads(path.read_text())
    file = checkpoint_folder / name
    manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    del manifest["digest"]
    path.write_text(json.dumps({**manifest, "digest": digest_of_values(manifest)}))
    verify(checkpoint_folder)


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_planted_program_is_refused_on_resume_and_export_and_not_executed(
    small_recipe: Path, tmp_path: Path, stage: int
) -> None:
    few = ("steps=1", "optimizer.warmup_steps=0", WITHOUT_EVALUATION)
    train(small_recipe, tmp_path / "runs", *few, stage=stage)
    folder = tmp_path / "runs" / "small" / "checkpoints" / "step-00000001"
    shards = [name for name in kinds(folder) if name.endswith(".pt")]
    assert shards
    for number, name in enumerate(shards):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "runs", copy)
        trace = tmp_path / f"executed{number}"
        plant(copy / "small" / "checkpoints" / "step-00000001", name, trace)
        with pytest.raises(AssertionError, match="ShardError.*possibly a program"):
            train(small_recipe, copy, *few, stage=stage)
        (done,) = call(export_main, copy / "small", tmp_path / "out")
        assert "possibly a program" in done.error
        assert not trace.exists() and not (tmp_path / "out").exists()
        torch.load(copy / "small" / "checkpoints" / "step-00000001" / name, weights_only=False)
        assert trace.exists()  # the payload would have worked


@pytest.mark.ranks
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(
    small_recipe: Path, run: Path, saved_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shard = run / "checkpoints" / "step-00000003" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    flip(shard)
    train(small_recipe, run.parent, *STEPS, ranks=2, stage=3)
    said = capfd.readouterr().out
    assert f"passed over a damaged checkpoint: {shard}" in said
    assert "resuming from" in said and "step-00000002 (step 2 of 3)" in said
    assert numbers(run) == numbers(saved_run)
    verify(run / "checkpoints" / "step-00000003")
    shards = [name for name in kinds(run / "checkpoints" / "step-00000003") if name.endswith(".pt")]
    theirs = digests(saved_run / "checkpoints" / "step-00000003")
    assert all(digests(run / "checkpoints" / "step-00000003")[name] == theirs[name] for name in shards)
