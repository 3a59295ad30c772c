"""The run folder: what was run, with what, on what; written before the first step."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from data.recipe import RawRecipe, UserError, resolved_with_origins
from training.config import Recipe

LOCK_FILE = "lock"
RECIPE_FILE = "recipe.resolved.yaml"
_LIBRARIES = """accelerate apex datasets deepspeed numpy pyarrow sentencepiece tokenizers torch transformers
    triton""".split()


def claim(folder: Path) -> TextIO:
    """Take the run folder for this process until it ends or the returned file is closed.

    Two runs that write into one folder would spoil it for both: the ranks of a launcher that was ended may well
    live on. The system itself gives the lock back, also after kill -9.

    Raises:
        UserError: another process has it.

    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"{folder}: another process is training there ({owner}). End it first, or start another run"
            " (--set name=...)."
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return file


def describe(
    folder: Path, recipe: Recipe, raw: RawRecipe, sharding: dict[str, Any], fingerprints: dict[str, str]
) -> None:
    """Write the files that say what this run is; on resume the newest command is added to the others."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(resolved_with_origins(recipe, raw), encoding="utf-8")
    _write_json(folder / "ds_config.resolved.json", sharding)
    _write_json(folder / "data.json", fingerprints)
    _write_json(folder / "environment.json", _environment())
    _write_json(folder / "git.json", _git())
    with (folder / "command.txt").open("a", encoding="utf-8") as file:
        file.write(shlex.join(sys.orig_argv) + "\n")


def _environment() -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
        "environment": {name: os.environ[name] for name in names if name in os.environ},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    def ask(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    changes = ask("status", "--porcelain")
    return {"commit": ask("rev-parse", "HEAD"), "changed_files": changes.splitlines() if changes else []}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
