"""A recipe's margin and prefixes of the alignment loss reach the training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.golden import read_golden
from tests.training.runs import WITHOUT_EVALUATION, numbers, train


@pytest.mark.ranks
def test_margin_and_prefixes_change_the_loss_of_the_pairs_and_no_other(
    small_recipe: Path, tmp_path: Path
) -> None:
    setting = "alignment={additive_margin: 0.3, matryoshka: [8, 16]}"
    train(small_recipe, tmp_path, WITHOUT_EVALUATION, setting, "steps=1", "optimizer.warmup_steps=0")
    (first, *_), golden = numbers(tmp_path / "small"), read_golden()[0]
    assert first["loss/mmlm"] == pytest.approx(golden["loss/mmlm"], rel=1e-4)
    assert first["loss/translation_alignment"] > 1.1 * golden["loss/translation_alignment"]
