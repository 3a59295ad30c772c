"""Checkpoints of a run: written beside, digested, then renamed; read only after every file was verified.

checkpoints/step-00001000/   rank-00000.safetensors ... (shards.py)
                             run.json        planner, progress, settings, data fingerprints
                             manifest.json   written last: every file with size and digest, step, topology, parameters
checkpoints/latest           the newest one's name: a hint; the truth is the newest manifest that verifies

Any number of ranks at any ZeRO stage writes one, and any other reads it. Nothing in one is executed: JSON and
safetensors are all that is opened, and nothing is opened that the manifest does not name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from data.recipe import UserError
from data.store import digest_of_values, sha256_of
from model.tensor_file import Sealed
from training.engine import Engine, World
from training.optimizer_state import WEIGHT
from training.shards import ShardFault, Shards, described

FORMAT = 2
MANIFEST = "manifest.json"
RUN_STATE = "run.json"
LATEST = "latest"
_NAME = re.compile(r"^step-(\d{8,})$")
_STATE = {"step": int, "store": str, "settings": dict, "encoder": dict, "planner": dict, "progress": dict}
_FILE = re.compile(r"^(rank-\d{5,}\.safetensors|run\.json)$")


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what its manifest says."""


class Found(NamedTuple):
    """A checkpoint that verifies."""

    path: Path
    manifest: dict[str, Any]
    faults: list[str]  # what is wrong with the newer ones

    def shards(self) -> Shards:
        """Its tensors."""
        return _shards(self.path, self.manifest)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by name, put together from all ranks, one at a time."""
        shards = self.shards()
        for name in shards.cuts:
            yield name, shards.whole(name, WEIGHT)

    def run_state(self) -> dict[str, Any]:
        """What run.json holds."""
        try:
            state = json.loads((self.path / RUN_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedCheckpoint(f"{self.path / RUN_STATE}: not readable ({error})") from None
        if not isinstance(state, dict) or any(
            type(state.get(key)) is not kind for key, kind in _STATE.items()
        ):
            raise DamagedCheckpoint(f"{self.path / RUN_STATE}: does not hold the state of a run")
        return state


class Saved(NamedTuple):
    """What came of a save."""

    path: Path
    faults: list[str]  # why there is no checkpoint, of each rank that failed; empty if there is one


def checkpoint_name(step: int) -> str:
    """``step-00001000``."""
    return f"step-{step:08d}"


def shard_name(rank: int) -> str:
    """The file of a rank."""
    return f"rank-{rank:05d}.safetensors"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints below ``folder``, newest first, whole or damaged; what was being written is none."""
    found = [path for path in folder.glob("step-*") if _NAME.match(path.name) and path.is_dir()]
    return sorted(found, key=_step_of, reverse=True)


def save(
    engine: Engine, folder: Path, step: int, state: dict[str, Any], keep: int, keep_every: int = 0
) -> Saved:
    """Write a checkpoint of ``step`` with all ranks; ``state`` goes into run.json.

    Of the older ones the newest ``keep`` stay, this one among them, and those of every ``keep_every``-th step.
    A fault of the disk, of whichever rank, leaves the checkpoints that there were and nothing of this one.
    """
    world = engine.world
    final, writing = folder / checkpoint_name(step), folder / f"writing-{checkpoint_name(step)}"
    _, faults = _by_all(world, lambda: _make_room(folder, writing) if world.first else None)
    if not faults:
        sealed, faults = _by_all(world, lambda: engine.save(writing / shard_name(world.process)))
    if not faults:
        content = {
            "format": FORMAT,
            "step": step,
            "ranks": world.processes,
            "tensor_ranks": world.tensor.size,
            "zero_stage": engine.stage,
            "fingerprints": {"store": state.get("store"), **state.get("taught", {})},
            "engine": engine.counts(),
            "parameters": described(engine.cuts),
            "files": {shard_name(rank): _described(one) for rank, one in enumerate(sealed)},
        }
        _, faults = _by_all(world, lambda: _commit(content, state, writing, final) if world.first else None)
    if world.first:
        if faults:
            shutil.rmtree(writing, ignore_errors=True)
        else:
            _tidy(final, keep, keep_every)
    return Saved(final, faults)


def verify(checkpoint: Path, world: World | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint that holds the files that it names, each of the size and digest it says.

    With a ``world`` the ranks share the reading, and all of them come to the same result.

    Raises:
        DamagedCheckpoint: names the file.

    """
    manifest, fault = _from_first(world, lambda: _read_manifest(checkpoint))
    if fault is None:
        files = sorted(manifest["files"].items(), key=lambda item: -item[1]["bytes"])
        rank, ranks = (world.process, world.processes) if world else (0, 1)
        faults = (_difference(checkpoint / name, said) for name, said in files[rank::ranks])
        mine = next((fault for fault in faults if fault is not None), None)
        fault = next((each for each in _said_by_all(world, mine) if each is not None), None)
    if fault is None:  # the first rank looks whether it is all there
        _, fault = _from_first(world, lambda: len(_shards(checkpoint, manifest).cuts))
    if fault is not None:
        raise DamagedCheckpoint(fault)
    return manifest


def newest(folder: Path, world: World | None = None) -> Found | None:
    """The newest checkpoint that verifies.

    Raises:
        UserError: there are checkpoints, and none of them verifies.

    """

    def look() -> tuple[list[str], bool]:
        return [path.name for path in checkpoints_in(folder)], (folder / LATEST).exists()

    (names, expected), _ = _from_first(world, look)
    faults: list[str] = []
    for name in names:
        try:
            return Found(folder / name, verify(folder / name, world), faults)
        except DamagedCheckpoint as fault:
            faults.append(str(fault))
    if faults or expected:
        raise UserError(
            "\n  ".join([f"{folder}: checkpoints were expected and none can be used. Restore one,"
                         " or start anew in another run folder (--set name=...).", *faults])
        )  # fmt: skip
    return None


def find(path: Path) -> Found:
    """The checkpoint that ``path`` means, verified: one itself, or the newest sound one of a run folder."""
    path = path.resolve()
    if _NAME.match(path.name) and path.is_dir():
        return Found(path, verify(path), [])
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and checkpoints_in(folder):
            found = newest(folder)
            assert found is not None
            return found
    raise UserError(f"{path}: neither a run folder with checkpoints nor a checkpoint (step-00001000).")


# ------------------------------------------------------------------------------------------------ writing


def _make_room(folder: Path, writing: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("writing-*"):
        shutil.rmtree(left)
    writing.mkdir()


def _commit(content: dict[str, Any], state: dict[str, Any], writing: Path, final: Path) -> None:
    """Write run.json and the manifest, sync what names the files, rename the folder."""
    run = _write_synced(writing / RUN_STATE, json.dumps(state, indent=1))
    content["files"][RUN_STATE] = _described(run)
    manifest = {**content, "digest": digest_of_values(content)}
    _write_synced(writing / MANIFEST, json.dumps(manifest, indent=1))
    _sync_folder(writing)
    if final.exists():  # damaged and passed over
        shutil.rmtree(final)
    writing.rename(final)
    _sync_folder(final.parent)


def _tidy(final: Path, keep: int, keep_every: int) -> None:
    """Point ``latest`` at what was just saved and remove what is no longer wanted; a fault in it costs nothing."""
    try:
        _write_synced(final.with_name("latest.new"), final.name + "\n")
        final.with_name("latest.new").rename(final.with_name(LATEST))
    except OSError:
        pass
    # Newer ones were damaged and passed over when the run went on from an older one: their steps are void.
    # Were they counted, what was just saved could be the one too many.
    there = checkpoints_in(final.parent)
    newer = [path for path in there if _step_of(path) > _step_of(final)]
    older = [path for path in there[len(newer) + keep :] if not keep_every or _step_of(path) % keep_every]
    for left in [*newer, *older]:
        shutil.rmtree(left, ignore_errors=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _described(sealed: Sealed) -> dict[str, Any]:
    return {"bytes": sealed.bytes, "sha256": sealed.sha256}


def _write_synced(path: Path, text: str) -> Sealed:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return Sealed(path.stat().st_size, sha256_of(path))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------ reading


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest = manifest.pop("digest")
        if digest != digest_of_values(manifest):
            raise DamagedCheckpoint(f"{path}: differs from what was saved (its digest)")
        if manifest.get("format") != FORMAT:
            raise DamagedCheckpoint(f"{path}: was saved by a version of this program that wrote other files")
        files = manifest["files"]
        ranks = manifest["ranks"]
        expected = {RUN_STATE, *(shard_name(rank) for rank in range(len(files) - 1))}
        well_formed = (
            ranks == len(files) - 1 and set(files) == expected and all(map(_FILE.match, files))
            and all(type(said["bytes"]) is int and isinstance(said["sha256"], str) for said in files.values())
            and isinstance(manifest["parameters"], dict) and isinstance(manifest["engine"], dict)
            and all(type(manifest[name]) is int for name in ("step", "ranks", "tensor_ranks", "zero_stage"))
            and all(type(count) is int for count in manifest["engine"].values())
        )  # fmt: skip
        if not well_formed or checkpoint_name(manifest["step"]) != checkpoint.name:
            raise DamagedCheckpoint(f"{path}: does not describe a checkpoint of that name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"{path}: not a readable manifest ({error!r})") from None
    return manifest


def _difference(path: Path, said: dict[str, Any]) -> str | None:
    """Why a file is not the one that was saved; None: it is."""
    if not path.is_file():
        return f"{path}: is missing from the checkpoint"
    try:
        same = path.stat().st_size == said["bytes"] and sha256_of(path) == said["sha256"]
    except OSError as error:
        return f"{path}: can not be read ({error})"
    return None if same else f"{path}: differs from what was saved (size or SHA-256)"


def _shards(checkpoint: Path, manifest: dict[str, Any]) -> Shards:
    names = sorted(name for name in manifest["files"] if name != RUN_STATE)
    try:
        return Shards([checkpoint / name for name in names], manifest["parameters"])
    except ShardFault as fault:
        raise DamagedCheckpoint(f"{checkpoint}: {fault}") from None


# ------------------------------------------------------------------------------------------------ all ranks


def _by_all(world: World, work: Callable[[], Any]) -> tuple[list[Any], list[str]]:
    """What ``work`` gives on each rank, and the faults of the disk that it met; the same on every rank."""
    try:
        mine: tuple[Any, str | None] = work(), None
    except OSError as error:
        mine = None, f"rank {world.process}: {error}"
    said = _said_by_all(world, mine)
    return [value for value, _ in said], [fault for _, fault in said if fault is not None]


def _from_first(world: World | None, work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What ``work`` gives on the first rank, or the fault that it met, on every rank."""
    outcome: list[Any] = [None, None]
    if world is None or world.first:
        try:
            outcome[0] = work()
        except DamagedCheckpoint as fault:
            outcome[1] = str(fault)
    if world is not None and world.processes > 1:
        dist.broadcast_object_list(outcome, src=0, device=world.device)
    return outcome[0], outcome[1]


def _said_by_all(world: World | None, mine: Any) -> list[Any]:
    if world is None or world.processes == 1:
        return [mine]
    said: list[Any] = [None] * world.processes
    dist.all_gather_object(said, mine)
    return said
