"""The linters do what the tree relies on: doors of heavy libraries, layers, torch kept out of data."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOORS = {
    "sentence_transformers": "data/teacher.py",
    "sentencepiece": "data/tokenizer_training.py",
    "datasets": "data/sources/hugging_face.py",
    "polib": "data/sources/po.py",
    "py3langid": "data/cleaning/language.py",
    "rensa": "data/cleaning/signatures.py",
    "transformers": "model/huggingface.py",
    "deepspeed": "training/engine.py",
    "tensorboard": "training/metrics.py",
    "torch.utils.tensorboard": "training/metrics.py",
    "accelerate": "training/evaluation.py",
    "apex": "training/optimizer.py",
}
ALLOWED = {
    "benchmarks/ablation.py": ["kernels.alignment.reference", "training.trainer", "data.batch", "torch"],
    "training/trainer.py": ["objectives.report", "data.batch", "model.encoder", "kernels.alignment", "torch"],
    "objectives/alignment.py": ["data.batch", "model.encoder", "kernels.alignment"],
    "model/encoder.py": ["kernels.alignment"],
    "data/batch.py": ["torch"],
}
FORBIDDEN = [
    ("data/planner.py", "torch"),
    ("data/planner.py", "model.encoder"),
    ("data/planner.py", "kernels.alignment"),
    ("data/planner.py", "pretrain"),
    ("model/encoder.py", "data.batch"),
    ("model/encoder.py", "objectives.report"),
    ("kernels/alignment/reference.py", "model.encoder"),
    ("kernels/alignment/reference.py", "data.batch"),
    ("objectives/alignment.py", "training.trainer"),
    ("training/trainer.py", "benchmarks.ablation"),
    ("objectives/alignment.py", "kernels.alignment.reference"),
    ("model/encoder.py", "kernels.alignment.reference"),
    ("training/trainer.py", "kernels.alignment.reference"),
]


def doors_closed_to(path: str, library: str, indent: str = "") -> bool:
    """Whether ruff refuses ``import library`` in ``path``."""
    code = f"def f():\n    import {library}\n" if indent else f"import {library}\n"
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", path, "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return "TID251" in done.stdout


@pytest.mark.parametrize(("library", "door"), DOORS.items())
def test_a_heavy_library_is_imported_in_its_door_alone(library, door):
    assert not doors_closed_to(door, library)
    assert doors_closed_to("training/step.py", library)
    assert doors_closed_to("training/step.py", library, indent="    ")


def layers_hold(folder: Path, imports: dict[str, list[str]]) -> bool:
    """Whether import-linter keeps all contracts on a small tree with these imports and this pyproject."""
    shutil.copy("pyproject.toml", folder)
    names = {path for path in (*ALLOWED, *imports)} | {
        "objectives/report.py", "data/batch.py", "model/encoder.py", "kernels/alignment/reference.py", "data/planner.py"
    }  # fmt: skip
    for name in sorted(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in path.relative_to(folder).parents[:-1]:
            (folder / package / "__init__.py").touch()
        path.write_text("".join(f"import {module}\n" for module in imports.get(name, [])))
    # the entry point of the lint-imports command, in a process of its own, whose path begins with the folder
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


def test_imports_may_point_down(tmp_path):
    assert layers_hold(tmp_path, ALLOWED)


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN)
def test_imports_may_not_point_up_or_across(tmp_path, importer, imported):
    assert not layers_hold(tmp_path, {**ALLOWED, importer: [*ALLOWED.get(importer, []), imported]})
