"""A recipe names the implementation of each loss: that one runs, or the run is refused before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels import implementation
from tests.training.golden import read_golden
from tests.training.runs import WITHOUT_EVALUATION, numbers, train
from training import dry_batch
from training.metrics import read_metrics

pytestmark = pytest.mark.ranks
LOSSES = ("alignment", "margin", "in_batch_margin", "vocabulary")
REFERENCE = f"kernels={{{', '.join(f'{loss}: reference' for loss in LOSSES)}}}"


def test_dense_losses_give_the_golden_curve(small_recipe: Path, tmp_path: Path) -> None:
    def nothing_is_left_to_auto() -> None:
        taken = dry_batch.taken_by_auto
        implementation._taken_by_auto.clear()  # what earlier tests of this process left

        def watched() -> dict[str, str]:
            assert not taken(), taken()
            return taken()

        dry_batch.taken_by_auto = watched

    train(small_recipe, tmp_path, WITHOUT_EVALUATION, REFERENCE, probe=nothing_is_left_to_auto)
    for step, golden in zip(numbers(tmp_path / "small"), read_golden(), strict=True):
        assert {name: step[name] for name in golden} == pytest.approx(golden, rel=1e-4)


@pytest.mark.parametrize("operation", ["alignment", "vocabulary"])
def test_what_can_not_run_here_is_refused_before_the_first_step(
    small_recipe: Path, tmp_path: Path, operation: str
) -> None:
    with pytest.raises(AssertionError, match=rf"UserError: kernels: \w*{operation}\w*: .*'triton'"):
        train(small_recipe, tmp_path, f"kernels.{operation}=triton", WITHOUT_EVALUATION)
    assert not read_metrics(tmp_path / "small")
