"""Every command answers --help and refuses bad input before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOWHERE = ["--recipe", "nowhere.yaml"]
# command -> bad input that is seen without any work
COMMANDS = {
    "pretrain": NOWHERE,
    "benchmarks.ablation": ["--preset", "nowhere"],
    "benchmarks.data": NOWHERE,
    "benchmarks.growth": ["--rounds", "0"],
    "benchmarks.kernels": ["--op", "nowhere"],
    "benchmarks.planner": ["--steps", "1"],
    "benchmarks.preparation": ["--megabytes", "many"],
    "benchmarks.step": ["--preset", "nowhere"],
    "benchmarks.step.guard": ["--nowhere"],
    "data.lexicon": [*NOWHERE, "--out", "list.tsv"],
    "data.mine": [*NOWHERE, "--out", "mined.jsonl"],
    "data.prepare": NOWHERE,
    "data.teach": [*NOWHERE, "--teacher", "nowhere"],
    "kernels.aot": ["--nowhere"],
    "training.evaluate": ["nowhere"],
    "training.export": ["nowhere", "out"],
    "training.gains": ["nowhere", "nowhere"],
    "training.report": ["nowhere"],
}
NO_COMMANDS = {
    f"benchmarks.{name}.worker" for name in ("data", "growth", "kernels", "preparation", "step")
}  # started by commands
# What takes some tenths of a second or more to import. numpy takes one: --help does without it, and so does the check
# of a recipe (tests/test_bad_input.py).
HEAVY = (
    "accelerate", "datasets", "deepspeed", "matplotlib", "pandas", "pyarrow", "scipy", "sentence_transformers",
    "sklearn", "sympy", "tensorboard", "torch", "transformers", "triton",
)  # fmt: skip
DRIVER = """
import contextlib, io, json, runpy, sys
name, cases, heavy = json.loads(sys.argv[1])
answers = []
for arguments in cases:
    sys.argv = [name, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module(name, run_name="__main__")
            status = None
        except SystemExit as leaving:
            status = leaving.code
    answers.append([status, out.getvalue(), err.getvalue(), [one for one in heavy if one in sys.modules]])
print(json.dumps(answers))
"""


def test_the_table_holds_every_command() -> None:
    folders = ("benchmarks", "data", "kernels", "model", "objectives", "training")
    paths = [*Path().glob("*.py"), *(path for folder in folders for path in Path(folder).rglob("*.py"))]
    found = {
        ".".join(path.with_suffix("").parts).removesuffix(".__main__")
        for path in paths
        if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }
    assert found == COMMANDS.keys() | NO_COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_answers_before_anything_heavy_is_imported(command: str) -> None:
    request = json.dumps([command, [["--help"], COMMANDS[command]], [*HEAVY, "numpy"]])
    done = subprocess.run([sys.executable, "-c", DRIVER, request], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    help_, refused = json.loads(done.stdout)
    assert help_[0] == 0 and "usage:" in help_[1] and help_[3] == []
    assert refused[0] == 2 and "error: " in refused[2] and "Traceback" not in refused[2]
    assert set(refused[3]) <= {"numpy"}
