"""Runs tests/kernels/interpreted in a process where Triton interprets its kernels, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).parent / "interpreted"


def run_interpreted(report: Path, *options: str) -> dict[str, int]:
    """Run the folder's tests and return how many ran, failed and were skipped.

    Raises AssertionError with all that pytest said if one failed or the process died: a load outside of a tensor is
    a segmentation fault, and the last line then names the test.
    """
    command = [
        sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--no-header",
        f"--junitxml={report}", *options, str(FOLDER),
    ]  # fmt: skip
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}"
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    return {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}


def test_kernels_equal_their_definitions_in_the_interpreter(tmp_path: Path) -> None:
    counts = run_interpreted(tmp_path / "report.xml")
    print(counts)
    assert counts["tests"] >= 10 and not counts["failures"] and not counts["errors"], counts
    assert not counts["skipped"], "a test that is skipped here runs nowhere"
