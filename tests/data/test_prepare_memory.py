"""Memory of a preparation does not follow the size of its corpora."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.config import DataConfig

# What prepares, and then says the largest memory of itself and of its workers, in MB.
# Its own from /proc: what getrusage says begins with the memory of the process that started this one.
MEASURED = """
import resource, sys
from data import parts
parts.ROWS_OF_A_PART = 1 << 18  # less than either corpus has, so that it is not its growth that is seen
from data.prepare import main
from benchmarks.turns import memory
status = main(sys.argv[1:])
own, workers = memory.peak() / 2**20, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(f"peak {own:.0f} {workers:.0f}")
sys.exit(status)
"""


def peaks(configure: Callable[..., DataConfig], folder: Path, pairs: int) -> tuple[int, int]:
    """Peak memory of the parent and of the largest worker, in MB, for so many pairs of short real texts."""
    folder.mkdir()
    words = {}
    for language, path in (("en", "rows.jsonl"), ("de", "rows.jsonl")):
        rows = (Path(configure().corpora["rows"].path or "").with_name(path)).read_text().splitlines()
        words[language] = re.findall(r"\w+", " ".join(json.loads(row)["t"].get(language, "") for row in rows))
    for language, known in words.items():
        with (folder / language).open("w") as file:
            for i in range(pairs):  # no text like another
                file.write(f"{known[i % len(known)]} {known[i // len(known) % len(known)]} {i}\n")
    corpus = {
        "kind": "parallel",
        "format": "text",
        "paths": {language: str(folder / language) for language in words},
        "cleaning": {"alignment": "off", "duplicates": "exact"},
    }
    config = configure(corpora={"pairs": corpus}, store=str(folder / "store"))
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "--recipe", str(path), "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    own, workers = re.findall(r"peak (\d+) (\d+)", done.stdout)[0]
    return int(own), int(workers)


@pytest.mark.slow
def test_the_memory_of_a_preparation_does_not_grow_with_its_corpora(
    configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    small = peaks(configure, tmp_path / "small", 400_000)  # so that no buffer is still growing
    large = peaks(configure, tmp_path / "large", 2_400_000)
    for before, after in zip(small, large, strict=True):
        # 60 bytes for each of the four million texts more would be 240 MB
        assert after < 400 and after - before < 60, (small, large)
