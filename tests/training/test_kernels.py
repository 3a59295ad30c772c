"""A recipe names the implementation of each loss: that one runs, or the run is refused before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernels import implementation
from kernels.vocabulary import streaming, tiles
from tests.training.golden import read_golden
from tests.training.runs import WITHOUT_EVALUATION, numbers, train
from training import narration
from training.metrics import read_metrics

pytestmark = pytest.mark.ranks
LOSSES = ("alignment", "margin", "in_batch_margin", "vocabulary")
REFERENCE = f"kernels={{{', '.join(f'{loss}: reference' for loss in LOSSES)}}}"


def test_dense_losses_give_the_golden_curve(small_recipe: Path, tmp_path: Path) -> None:
    def nothing_is_left_to_auto() -> None:
        taken = narration.taken_by_auto
        implementation._taken_by_auto.clear()  # what earlier tests of this process left

        def watched() -> dict[str, str]:
            assert not taken(), taken()
            return taken()

        narration.taken_by_auto = watched

    train(small_recipe, tmp_path, WITHOUT_EVALUATION, REFERENCE, probe=nothing_is_left_to_auto)
    for step, golden in zip(numbers(tmp_path / "small"), read_golden(), strict=True):
        assert {name: step[name] for name in golden} == pytest.approx(golden, rel=1e-4)


def test_logits_that_are_made_again_find_a_table_that_zero3_has_whole(
    small_recipe: Path, tmp_path: Path
) -> None:
    def many_tiles() -> None:
        tiles.TILE_ROWS = 64
        tiles.KEPT_BYTES, tiles.TILE_BYTES = {"cpu": 0, "cuda": 0}, {"cpu": 2**16, "cuda": 2**16}
        cut_of = tiles.cut_of

        def watched(*arguments: Any, **limits: Any) -> tiles.Cut:
            cut = cut_of(*arguments, **limits)
            assert cut.kept == 0 and cut.columns <= 2**16
            return cut

        streaming.cut_of = watched

    train(small_recipe, tmp_path, WITHOUT_EVALUATION, ranks=2, stage=3, probe=many_tiles)
    for step, golden in zip(numbers(tmp_path / "small"), read_golden(), strict=True):
        assert {name: step[name] for name in golden} == pytest.approx(golden, rel=1e-4)


@pytest.mark.parametrize("operation", ["alignment", "vocabulary"])
def test_what_can_not_run_here_is_refused_before_the_first_step(
    small_recipe: Path, tmp_path: Path, operation: str
) -> None:
    with pytest.raises(AssertionError, match=rf"UserError: kernels: \w*{operation}\w*: .*'triton'"):
        train(small_recipe, tmp_path, f"kernels.{operation}=triton", WITHOUT_EVALUATION)
    assert not read_metrics(tmp_path / "small")
