"""The rule of convergence: both tasks at once, on smoothed losses, and what one of them gives the other meanwhile."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from training.convergence import Convergence, ConvergenceConfig, Judgement

BOTH = ("camlm", "mmlm")


def rule(**values: object) -> Convergence:
    return Convergence(ConvergenceConfig.model_validate(values), *BOTH)


def run(
    found: Convergence, camlm: list[float], mmlm: list[float], trained: tuple[str, ...] = BOTH
) -> list[Judgement]:
    """An evaluation every 10 steps of 100 tokens."""
    return [
        found.update(10 * n, 1000 * n, {"camlm": one, "mmlm": other}, trained)
        for n, (one, other) in enumerate(zip(camlm, mmlm, strict=True), start=1)
    ]


def falling(length: int, until: int, start: float = 9.0, end: float = 5.0) -> list[float]:
    """A loss that falls in a straight line for ``until`` evaluations, then stays."""
    return [start + (end - start) * min(1.0, n / until) for n in range(length)]


def plain(losses: list[float], smoothing: float, window: int) -> list[float]:
    """Improvements by the definition: weights smoothing ** age, minima, differences."""
    smoothed = []
    for n in range(len(losses)):
        weights = np.array([smoothing**age for age in range(n, -1, -1)], np.float64)
        smoothed.append(float((weights * losses[: n + 1]).sum() / weights.sum()))
    bests = [min(smoothed[: n + 1]) for n in range(len(losses))]
    return [
        (bests[n - window] - bests[n]) / bests[n - window] if n >= window else math.nan
        for n in range(len(losses))
    ]


@settings(max_examples=60)
@given(
    losses=st.lists(st.floats(0.5, 12), min_size=1, max_size=25),
    smoothing=st.sampled_from([0.0, 0.5, 0.9]),
    window=st.integers(1, 6),
)
def test_improvements_are_those_of_the_definition(losses: list[float], smoothing: float, window: int) -> None:
    found = run(rule(smoothing=smoothing, window=window), losses, losses)
    truth = plain(losses, smoothing, window)
    for judgement, improvement in zip(found, truth, strict=True):
        assert judgement.tasks["camlm"].improvement == pytest.approx(improvement, abs=1e-9, nan_ok=True)
        if math.isfinite(improvement) and abs(improvement - 1e-3) > 1e-9:
            assert judgement.tasks["mmlm"].converged == (improvement < 1e-3)


def test_complete_only_when_both_have_converged_in_the_same_evaluation() -> None:
    found = rule(smoothing=0.0)
    judgements = run(found, falling(40, 10), falling(40, 25))
    # A loss that is flat from evaluation 10 (counted from 0) on has not improved over five at the 16th.
    assert [j.tasks["camlm"].converged for j in judgements].index(True) == 15
    assert [j.tasks["mmlm"].converged for j in judgements].index(True) == 30
    assert [j.complete for j in judgements].index(True) == 30 and found.complete_since == 310


def test_one_that_gets_better_again_has_not_converged_any_more() -> None:
    # camlm is flat, then learns again when mmlm is flat: never both at once before the end.
    camlm = falling(12, 3) + falling(10, 9, 5.0, 3.0) + [3.0] * 8
    mmlm = falling(14, 13) + [5.0] * 16
    judgements = run(rule(smoothing=0.0), camlm, mmlm)
    of_camlm = [j.tasks["camlm"].converged for j in judgements]
    assert of_camlm[9] and not of_camlm[16] and of_camlm[-1]
    both = [j.complete for j in judgements]
    assert both.index(True) == of_camlm.index(True, 16)


def test_a_loss_that_rises_or_jumps_about_a_level_has_converged() -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, 60)
    judgements = run(rule(), list(5 + noise), [5 + 0.1 * n for n in range(60)])
    assert judgements[-1].complete and judgements[20].complete


def test_smoothing_outlives_noise_that_would_look_like_progress() -> None:
    slow = [9 * 0.97**n for n in range(40)]
    noise = np.random.default_rng(1).normal(0, 0.05, 40)
    assert not any(j.complete for j in run(rule(), list(slow + noise), list(slow - noise)))


def test_nothing_has_converged_before_the_least_tokens() -> None:
    judgements = run(rule(minimum_tokens=20_000), [5.0] * 30, [5.0] * 30)
    assert [j.complete for j in judgements].index(True) == 19  # 20,000 tokens
    assert [j.complete for j in run(rule(), [5.0] * 30, [5.0] * 30)].index(True) == 5


def test_a_task_that_is_not_trained_yet_is_not_judged_and_begins_anew() -> None:
    found = rule()
    before = run(found, [9.0] * 10, [9.0] * 10, trained=("mmlm",))
    assert (
        not any(j.tasks["camlm"].converged or j.moved for j in before) and before[-1].tasks["mmlm"].converged
    )
    after = run(found, [9.0] * 10, [9.0] * 10)
    assert [j.complete for j in after].index(True) == 5


def test_a_loss_that_is_not_finite_is_passed_over() -> None:
    judgements = run(rule(), [5.0] * 6 + [math.nan] + [5.0] * 3, [math.inf] * 10)
    assert not judgements[6].tasks["camlm"].converged and judgements[7].tasks["camlm"].converged
    assert not any(j.complete for j in judgements)


def test_the_one_that_has_converged_gives_half_of_its_budget_again_and_again_down_to_the_floor() -> None:
    judgements = run(rule(smoothing=0.0), [5.0] * 25, falling(25, 12))
    moved = {n: j.moved for n, j in enumerate(judgements) if j.moved}
    assert moved == {
        5: {"moved/camlm/mmlm": 0.5},
        6: {"moved/camlm/mmlm": 0.75},
        7: {"moved/camlm/mmlm": 0.8},
        17: {"moved/camlm/mmlm": 0.0},  # both
    }
    assert judgements[17].complete
    assert not any(j.moved for j in run(rule(moved=0), [5.0] * 25, falling(25, 12)))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(1, 9), st.floats(1, 9)), min_size=12, max_size=30), st.integers(1, 11))
def test_restored_from_its_state_it_says_the_same(losses: list[tuple[float, float]], cut: int) -> None:
    camlm, mmlm = (list(of_task) for of_task in zip(*losses, strict=True))
    whole, parts = rule(relative_tolerance=0.3), rule(relative_tolerance=0.3)
    truth = run(whole, camlm, mmlm)
    run(parts, camlm[:cut], mmlm[:cut])
    again = rule(relative_tolerance=0.3)
    again.restore(json.loads(json.dumps(parts.state())))
    for n in range(cut + 1, len(camlm) + 1):
        found = again.update(10 * n, 1000 * n, {"camlm": camlm[n - 1], "mmlm": mmlm[n - 1]}, BOTH)
        assert str(found) == str(truth[n - 1])
    assert again.state() == whole.state()


def test_the_names_of_both_variants_of_btmlm() -> None:
    assert ConvergenceConfig().score("btmlm") == "masked/btmlm/loss"
    frozen = ConvergenceConfig(pseudo_tokens="frozen")
    assert frozen.score("btmlm") == "masked/btmlm_frozen/loss" and frozen.score("mmlm") == "masked/mmlm/loss"


@pytest.mark.parametrize(
    "values", [{"window": 0}, {"floor": 0}, {"moved": 1}, {"monolingual": "camlm"}, {"rel_tol": 1e-3}]
)
def test_what_is_no_rule_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ConvergenceConfig.model_validate(values)


# Held-out losses of a real run, every 15 steps: a small encoder on 160 rows and 500 sentences in 22 languages. Both lie
# flat from the frequencies of words (step 60) to where mmlm begins to read its context (step 150).
REAL_MMLM = [
    6.7601, 5.9156, 5.8839, 5.8721, 5.8651, 5.8649, 5.8637, 5.8649, 5.8672, 5.7967, 5.8103, 5.7630, 5.7931,
    5.7238, 5.6826,
]  # fmt: skip
REAL_CAMLM = [
    6.6783, 5.6063, 5.5955, 5.5669, 5.5740, 5.5747, 5.5602, 5.5594, 5.5701, 5.5979, 5.5547, 5.5411, 5.5835,
    5.5845, 5.5438,
]  # fmt: skip


def test_on_a_real_run_a_plateau_before_the_breakthrough_is_not_the_end() -> None:
    judgements = run(rule(), REAL_CAMLM, REAL_MMLM)
    assert not any(judgement.complete for judgement in judgements)
    # A window as short as the plateau is taken in by it: the price of haste, and what minimum_tokens is for.
    hasty = run(rule(window=1), REAL_CAMLM, REAL_MMLM)
    assert [judgement.complete for judgement in hasty].index(True) < 9
