"""Checkpoints of a run: written beside, digested, then renamed; read only after every file was verified.

checkpoints/step-00001000/   DeepSpeed's shards, run.json (planner, data fingerprints), manifest.json
checkpoints/latest           the newest one's name: a hint; the truth is the newest manifest that verifies
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data.recipe import UserError
from data.store import digest_of_values
from training.engine import Engine

MANIFEST = "manifest.json"
RUN_STATE = "run.json"
LATEST = "latest"
_NAME = re.compile(r"^step-(\d{8,})$")


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what its manifest says."""


def checkpoint_name(step: int) -> str:
    """``step-00001000``."""
    return f"step-{step:08d}"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints below ``folder``, newest first, whole or damaged; what was being written is none."""
    found = [path for path in folder.glob("step-*") if _NAME.match(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def save(engine: Engine, folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint of ``step`` with all ranks; ``state`` goes into run.json. Returns its folder."""
    name = checkpoint_name(step)
    writing = f"writing-{name}"
    first = engine.world.first
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("writing-*"):
            shutil.rmtree(left)
    dist.barrier()
    engine.save(folder, writing)
    if first:
        written = folder / writing
        (written / RUN_STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        files = {path.name: _seal(path) for path in sorted(written.iterdir())}
        content = {"step": step, "ranks": engine.world.ranks, "zero_stage": engine.stage, "files": files}
        manifest = {**content, "digest": digest_of_values(content)}
        _write_synced(written / MANIFEST, json.dumps(manifest, indent=1))
        _sync_folder(written)
        final = folder / name
        if final.exists():
            shutil.rmtree(final)
        written.rename(final)
        _sync_folder(folder)
        _write_synced(folder / "latest.new", name + "\n")
        (folder / "latest.new").rename(folder / LATEST)
        # Newer ones were damaged and passed over when the run went on from an older one: their steps are void.
        # Were they counted, what was just saved could be the one too many.
        newer = [path for path in checkpoints_in(folder) if path.name > name]
        for left in [*newer, *checkpoints_in(folder)[len(newer) + keep :]]:
            shutil.rmtree(left)
    dist.barrier()
    return folder / name


def verify(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that holds the files that it names, each of the size and digest it says.

    Raises:
        DamagedCheckpoint: names the file.

    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        digest = manifest.pop("digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{checkpoint / MANIFEST}: not a readable manifest ({error})") from None
    if digest != digest_of_values(manifest):
        raise DamagedCheckpoint(f"{checkpoint / MANIFEST}: differs from what was saved (its digest)")
    for path in sorted(checkpoint.glob("*.pt")):  # DeepSpeed opens what it finds by such names
        if path.name not in manifest["files"]:
            raise DamagedCheckpoint(f"{path}: was not saved with the checkpoint")
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: is missing from the checkpoint")
        if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise DamagedCheckpoint(f"{path}: differs from what was saved (size or SHA-256)")
    return manifest


def newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest checkpoint that verifies, its manifest, and what is wrong with the newer ones.

    Raises:
        UserError: there are checkpoints, and none of them verifies.

    """
    faults: list[str] = []
    for checkpoint in checkpoints_in(folder):
        try:
            return checkpoint, verify(checkpoint), faults
        except DamagedCheckpoint as fault:
            faults.append(str(fault))
    if faults or (folder / LATEST).exists():
        raise UserError(
            "\n  ".join([f"{folder}: checkpoints were expected and none can be used. Restore one,"
                         " or start anew in another run folder (--set name=...).", *faults])
        )  # fmt: skip
    return None


def run_state(checkpoint: Path) -> dict[str, Any]:
    """What run.json holds."""
    return json.loads((checkpoint / RUN_STATE).read_text(encoding="utf-8"))


def find(path: Path) -> Path:
    """The checkpoint that ``path`` means: one itself, or the newest sound one of a run folder."""
    path = path.resolve()
    if _NAME.match(path.name) and path.is_dir():
        verify(path)
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and checkpoints_in(folder):
            found = newest(folder)
            assert found is not None
            return found[0]
    raise UserError(f"{path}: neither a run folder with checkpoints nor a checkpoint (step-00001000).")


def _seal(path: Path) -> dict[str, Any]:
    """Sync a file to disk and take its size and digest."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
