"""The numbers of a step: means per task and language, shares against budgets, speed over a window."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data.recipe import parse_recipe, read_recipe
from data.shares import Mix
from data.tally import Tally
from tests.training.test_step import FakeStream
from training.config import Recipe
from training.engine import StepOutcome
from training.progress import Progress
from training.step import StepLosses


class Stream(FakeStream):
    def __init__(self, name: str, loss: str, *languages: str) -> None:
        super().__init__(name, loss)
        self.languages = languages


STREAMS = [
    Stream("mmlm", "masked", "de"),
    Stream("mmlm", "masked", "fr"),
    Stream("translation_alignment", "alignment", "de", "en-GB"),
    Stream("translation_alignment", "alignment", "de", "fr"),
    Stream("mixed_alignment", "alignment", "de"),
]
MIX = Mix(1, 0.5, 0.3, np.array([0.1, 0.2, 0.3, 0.2, 0.2]))


@pytest.fixture
def progress(small_recipe: Path) -> Progress:
    settings = ["tasks.tlm=null", "tasks.camlm=null", "tasks.mmlm.loss_weight=2", "steps=10"]
    recipe = parse_recipe(read_recipe(small_recipe, settings), Recipe)
    return Progress(STREAMS, recipe)  # type: ignore[arg-type]


def tally(tokens: list[int]) -> np.ndarray:
    found = np.zeros((5, len(Tally)), np.int64)
    found[:, Tally.TOKENS] = tokens
    mixed = {
        "PAIRS": 4,
        "REJECTED": 1,
        "ONE_LANGUAGE": 3,
        "MIXED": 5,
        "REPLACED": 6,
        "TRANSLATABLE": 10,
        "WORDS": 30,
        "LANGUAGES": 12,
        "CUT": 2,
        "BY_DICTIONARY": 3,
        "BY_SENTENCE": 2,
        "OVERLAP": 1_000_000,
        "BASELINE_ROWS": 8,
        "BASELINE_CORRECT": 6,
    }
    for name, value in mixed.items():
        found[4, Tally[name]] = value
    return found


LOSSES = StepLosses(
    sums=np.array([10.0, 2.0, 6.0, 0.0, 0.0]),
    terms=np.array([4, 2, 3, 0, 0]),
    correct=np.array([1, 1, 3, 0, 0]),
    temperature=0.05,
)


def scalars(progress: Progress, step: int = 1, seconds: float = 2.0, tokens: list[int] | None = None) -> dict:
    return progress.scalars(
        step, tally(tokens or [100, 200, 300, 200, 200]), LOSSES, StepOutcome(3.5, False), 1e-3, MIX,
        seconds=seconds, waited=0.5, memory_gib=1.5,
    )  # fmt: skip


def test_losses_and_accuracies_are_means_over_terms(progress: Progress) -> None:
    found = scalars(progress)
    assert found["loss/mmlm"] == 12 / 6 and found["loss/translation_alignment"] == 6 / 3
    assert found["accuracy/mmlm"] == 2 / 6 and found["accuracy/translation_alignment"] == 1.0
    assert math.isnan(found["loss/mixed_alignment"])  # a task without a term in this step
    assert found["loss"] == 2 * 2.0 + 2.0  # the loss that is trained on: weighted, without the absent one


def test_a_language_has_the_mean_over_all_pairs_that_it_stands_in(progress: Progress) -> None:
    found = scalars(progress)
    assert found["loss/mmlm/de"] == 2.5 and found["loss/mmlm/fr"] == 1.0
    assert found["loss/translation_alignment/de"] == found["loss/translation_alignment/en-GB"] == 2.0
    assert "loss/translation_alignment/fr" not in found and "loss/mixed_alignment/de" not in found


def test_shares_are_of_all_tokens_so_far_also_after_a_resume(progress: Progress, small_recipe: Path) -> None:
    found = scalars(progress)
    assert found["share/mmlm"] == pytest.approx(0.3) and found["budget/mmlm"] == pytest.approx(0.3)
    assert found["budget/translation_alignment"] == pytest.approx(0.5)
    found = scalars(progress, 2, tokens=[1000, 0, 0, 0, 0])
    assert found["share/mmlm"] == 1300 / 2000 and found["tokens"] == 2000
    state = progress.state()
    assert state["spent"] == [1100, 200, 300, 200, 200]
    assert state["due"] == [n * 10**6 for n in (200, 400, 600, 400, 400)]
    progress.restore({**state, "spent": [0, 0, 0, 0, 1000], "due": [10**9, 0, 0, 0, 0]})
    assert scalars(progress, 3)["share/mixed_alignment"] == 1200 / 2000


def test_speed_is_over_a_window_and_the_rest_follows_from_it(progress: Progress) -> None:
    found = scalars(progress, 1, seconds=4.0)
    assert found["tokens_per_second"] == 250 and found["eta_seconds"] == 9 * 4.0
    found = scalars(progress, 2, seconds=1.0)
    assert found["tokens_per_second"] == 400 and found["eta_seconds"] == 8 * 2.5
    for step in range(3, 30):
        found = scalars(progress, step, seconds=1.0)
    assert found["tokens_per_second"] == 1000  # the slow first steps are forgotten
    assert found["packing_efficiency"] == 1000 / 4096
    assert found["data_wait_seconds"] == 0.5 and found["grad_norm"] == 3.5 and found["memory_gib"] == 1.5


def test_how_mixed_the_mixed_texts_are(progress: Progress) -> None:
    found = scalars(progress)
    assert found["mixed/realised_rate"] == 0.6 and found["mixed/share_of_words"] == 0.2
    assert found["mixed/realised_rate/de"] == 0.6 and "mixed/realised_rate/fr" not in found
    assert found["mixed/languages"] == 12 / 5
    assert found["mixed/rejected"] == 1 + 3 and found["mixed/rejected_share"] == 4 / 8
    assert (
        found["mixed/one_language"] == found["mixed/one_language/de"] == 3 and found["mixed/rejected/de"] == 4
    )
    assert found["mixed/cut"] == 2
    assert found["mixed/overlap"] == 0.25 and found["mixed/bag_of_words_accuracy"] == 0.75
    assert {name: value for name, value in found.items() if "generator" in name} == {
        "mixed/generator/dictionary": 3 / 5,
        "mixed/generator/sentence": 2 / 5,
    }


def test_rejects_are_told_also_where_nothing_else_of_mixed_text_is_left(progress: Progress) -> None:
    counted = tally([100] * 5)
    counted[4] = 0
    counted[4, [Tally.REJECTED, Tally.ONE_LANGUAGE]] = 1, 2
    found = progress.scalars(
        1, counted, LOSSES, StepOutcome(3.5, False), 1e-3, MIX, seconds=1.0, waited=0.0, memory_gib=1.0
    )
    of_mixed = {name: value for name, value in found.items() if name.startswith("mixed/")}
    assert of_mixed == {
        "mixed/rejected": 3, "mixed/one_language": 2, "mixed/rejected_share": 1.0,
        "mixed/rejected/de": 3, "mixed/one_language/de": 2,
    }  # fmt: skip


def test_the_margin_on_pairs_has_losses_of_its_own_by_language_and_a_part_in_the_whole(
    progress: Progress,
) -> None:
    without = scalars(progress)
    progress._in_batch_weight = 0.5
    riding = np.array([0.0, 0, 6, 2, 1]), np.array([0, 0, 3, 1, 4]), np.array([0, 0, 2, 0, 4])
    found = progress.scalars(
        2, tally([100] * 5), LOSSES._replace(in_batch=riding), StepOutcome(3.5, False), 1e-3, MIX,
        seconds=1.0, waited=0.0, memory_gib=1.0,
    )  # fmt: skip
    assert found["loss/in_batch_margin"] == pytest.approx(9 / 8)
    assert found["accuracy/in_batch_margin"] == pytest.approx(6 / 8)
    assert found["loss/in_batch_margin/fr"] == pytest.approx(2 / 1)
    assert found["loss/in_batch_margin/en-GB"] == pytest.approx(6 / 3)
    assert found["loss"] == pytest.approx(without["loss"] + 0.5 * 9 / 8)
    assert "loss/in_batch_margin" not in without


def test_a_stage_is_counted_for_itself_also_after_a_resume(progress: Progress) -> None:
    progress.begin_stage(0)
    scalars(progress, tokens=[1000, 0, 0, 0, 0])
    progress.begin_stage(0)
    assert progress.of_stage()["mmlm"] == pytest.approx((1.0, 0.3))
    progress.begin_stage(1)
    scalars(progress, 2)
    progress.restore(json.loads(json.dumps(progress.state())))
    progress.begin_stage(1)
    assert progress.of_stage()["mmlm"] == pytest.approx((0.3, 0.3)) and progress.stage == 1
    assert progress.tokens == 2000


def test_languages_have_their_part_of_a_task_and_pairs_count_for_both(progress: Progress) -> None:
    scalars(progress, tokens=[150, 150, 300, 100, 300])
    found = progress.of_languages()
    assert found["mmlm/de"] == pytest.approx((1 / 2, 1 / 3))
    assert found["translation_alignment/de"] == pytest.approx((1, 5 / 4))
    assert found["translation_alignment/fr"] == pytest.approx((1 / 4, 1 / 2))
