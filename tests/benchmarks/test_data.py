"""The benchmark of the data path: who is compared with whom, in turns; and what is not there is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.__main__ import Result, best_of_others, measure, table, times
from benchmarks.data.contestants import CONTESTANTS, OTHERS, OURS, texts_of
from benchmarks.data.texts import write_texts


def test_a_contestant_runs_in_a_process_of_its_own_and_one_that_is_not_installed_says_so(
    small_recipe: Path, tmp_path: Path
) -> None:
    said = write_texts(small_recipe, tmp_path)
    ids, ends = texts_of(tmp_path)
    assert said.startswith(f"{len(ends):,} texts") and ends[-1] == len(ids)
    assert (ids[ends - 1] == 2).all() and (ids[np.r_[0, ends[:-1]]] == 0).all()
    ours, megatron = measure(["calque-mixed", "megatron"], tmp_path, 2, 0.05, {}, warm=0.05)
    assert len(ours.speeds) == 2 and min(ours.speeds) > 1000
    assert (
        "No module named 'megatron'" in megatron.unavailable
        and "--python megatron=PATH" in megatron.unavailable
    )
    assert table([ours, megatron])[2][1].startswith("- (No module")


FOUND = [
    Result("calque-tasks", [600.0, 900.0, 600.0]),
    Result("datasets", [200.0, 150.0, 100.0]),
    Result("streaming", [100.0, 100.0, 300.0]),
    Result("megatron-gpt", [9000.0] * 3),
    Result("megatron", [], "not there"),
]


def test_ours_is_held_against_the_best_that_does_the_same_work_round_by_round() -> None:
    best = best_of_others(FOUND)
    assert best is not None and best.name == "datasets"
    assert times(FOUND[0], best) == 6.0  # of 3, 6 and 6
    assert [row[3] for row in table(FOUND)[1:]] == ["6.00", "1.00", "0.67", "other work", ""]
    assert best_of_others(FOUND[:1]) is None
    assert set(OURS) | set(OTHERS) < set(CONTESTANTS)


@pytest.mark.parametrize("module", ["contestants", "worker", "hugging_face", "mosaic", "megatron"])
def test_what_other_interpreters_run_imports_nothing_that_they_may_lack(module: str) -> None:
    code = f"""
import sys
class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("numpy", "torch", "pydantic", "data", "training", "regex"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import benchmarks.data.{module}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
