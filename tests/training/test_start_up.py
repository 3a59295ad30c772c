"""The clock of a start begins where the launch of this program began, and nowhere before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.start_up import StartUp

# Says when it began, by the system, and what the clock says; the launchers say when they began.
PROGRAM = """
import json, os, sys
sys.path.insert(0, {tree!r})
from training.start_up import StartUp, _born
start = StartUp()
start.ends("imports")
print(json.dumps([_born(os.getpid()), _born(os.getppid()), start._launched, start.seconds]))
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"


def said(tmp_path: Path, *launchers: str) -> tuple[float, float, float, dict[str, float]]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tree=str(Path.cwd())))
    done = subprocess.run(
        [*launchers, sys.executable, str(program), "--an", "option"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    born, parent, launched, seconds = json.loads(done.stdout)
    return born, parent, launched, seconds


def test_a_launcher_is_part_of_the_start(tmp_path: Path) -> None:
    born, parent, launched, seconds = said(tmp_path, sys.executable, "-c", LAUNCHER)
    assert launched == parent < born
    assert seconds["launcher"] == pytest.approx(born - parent) and list(seconds) == ["launcher", "imports"]


@pytest.mark.parametrize("shell", [[], ["sh", "-c", '"$0" "$@"; exit $?']], ids=["this test", "a shell"])
def test_what_is_no_launcher_is_not(tmp_path: Path, shell: list[str]) -> None:
    born, _, launched, seconds = said(tmp_path, *shell)
    assert launched == born and seconds["launcher"] == 0


def test_a_part_counts_once_and_all_of_them_are_the_total() -> None:
    start = StartUp()
    start.ends("build")
    build = start.seconds["build"]
    start.ends("step")
    start.ends("build")
    assert list(start.busy) == ["build", "step"]
    assert start.seconds["build"] == build and sum(start.seconds.values()) == pytest.approx(start.total)
