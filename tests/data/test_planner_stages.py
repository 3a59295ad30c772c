"""Invariants: shares that change inside a run, decisions and caps: the same plans with any look-ahead and resume."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.index import Rule
from data.planner import LAG, Planner
from data.sampling import Part, Stream
from data.settings.tasks import TasksConfig
from data.shares import Shares
from data.stages import SamplingConfig
from data.tasks import TASKS
from tests.data.planned_streams import realised


def mixed_by(sampling, sizes=(40000, 9000, 700, 4000, 500), rejects=0.0, steps=0, seed=0):
    """A planner over mmlm and tlm streams of a sampling section, its plans, and what each step held."""
    random = np.random.default_rng(seed)
    streams = []
    for number, size in enumerate(sizes):
        task = TASKS["mmlm" if number < 3 else "tlm"]
        lengths = random.integers(3, 60, size=max(2, size // 30)).astype(np.int32)
        languages = (f"l{number}",) if number < 3 else (f"l{number - 3}", "l2")
        sides = (Rule(0, 1, len(lengths)),) * len(languages)
        part = Part(0, sides, lengths, int(lengths.sum()) * len(sides), sampling.cap("only"))
        streams.append(Stream(f"{task.name}/{'-'.join(languages)}", task, languages, (part,)))
    shares = Shares(streams, TasksConfig.model_validate({"mmlm": {}, "tlm": {"weight": 2}}), sampling)
    planner = Planner(streams, shares, step_tokens=4096, row_tokens=512, maximum_tokens=128, seed=5)
    return planner, (lambda plan: realised(plan, streams, rejects, seed=11))


def run_ahead(planner, held, steps, ahead, decide=None, restore_at=None, fresh=None):
    """The plans of ``steps`` steps, made ``ahead`` of time; optionally saved and restored after a step."""
    queue, made, mixes = [], [], []
    step = 0
    while step < steps:
        step += 1
        while len(queue) <= ahead:
            queue.append(planner.plan())
        plan = queue.pop(0)
        mixes.append(planner.mix(step))
        if planner.exhausted(step):
            break
        planner.feedback(step, held(plan))
        made.append(plan)
        if decide and step in decide:
            planner.decide(*decide[step], after_step=step)
        if step == restore_at:
            saved = json.dumps(planner.state())
            planner, queue = fresh(), []
            planner.restore(json.loads(saved))
    return made, mixes


STAGED = SamplingConfig.model_validate(
    {
        "language_temperature": {"start": 1.0, "end": 0.0, "tokens": 60000},
        "stages": [
            {"tokens": 30000, "budgets": {"monolingual": 1, "bilingual": 0}},
            {"tokens": 50000, "budgets": {"monolingual": 1, "bilingual": 9}, "language_floor": 0.2},
            {"weights": {"tlm": 1}, "budgets": {"monolingual": 1, "bilingual": 1}, "pair_temperature": 1.0},
        ],
    }
)


DECIDED = {9: ("moved/tlm/mmlm", 0.5), 13: ("moved/tlm/mmlm", 0.8), 31: ("moved/tlm/mmlm", 0.0)}


@settings(max_examples=15, deadline=None)
@given(ahead=st.integers(0, LAG), restore_at=st.integers(1, 39))
def test_changing_shares_decisions_look_ahead_and_a_resume_at_any_step_give_the_same_plans(ahead, restore_at):
    def fresh():
        return mixed_by(STAGED)[0]

    held = mixed_by(STAGED, rejects=0.5)[1]
    truth, mixes = run_ahead(fresh(), held, 40, 0, DECIDED)
    found, again = run_ahead(fresh(), held, 40, ahead, DECIDED, restore_at, fresh)
    assert all(np.array_equal(a.records, b.records) for a, b in zip(truth, found, strict=True))
    assert all(np.array_equal(a.shares, b.shares) for a, b in zip(mixes, again, strict=True))
    assert {mix.stage for mix in mixes} == {0, 1, 2}


def test_a_decision_is_in_force_after_the_lag_and_not_before():
    planner, held = mixed_by(SamplingConfig())
    _, mixes = run_ahead(planner, held, 20, LAG, {9: ("moved/tlm/mmlm", 0.5)})
    of_tlm = [float(mix.shares[3:].sum()) for mix in mixes]
    assert of_tlm == pytest.approx([0.5] * (9 + LAG) + [0.25] * (11 - LAG))


def test_deciding_too_late_is_an_error():
    planner, _ = mixed_by(SamplingConfig())
    for step in range(1, LAG + 3):
        planner.feedback(step, planner.plan().planned)
    with pytest.raises(RuntimeError, match="too late to decide x"):
        planner.decide("x", 1, 0)


@pytest.mark.parametrize("rejects", [0.0, 0.45])
def test_the_tokens_of_each_stage_follow_its_own_budgets(rejects):
    stages = [
        {"tokens": 300_000, "budgets": {"monolingual": 1, "bilingual": 0}},
        {"tokens": 200_000, "budgets": {"monolingual": 0.1, "bilingual": 1}},
        {"tokens": 150_000, "budgets": {"monolingual": 3, "bilingual": 1}, "language_floor": {"l2": 0.3}},
        {"weights": {"mmlm": 0}},
    ]
    planner, held = mixed_by(SamplingConfig.model_validate({"stages": stages}), rejects=rejects)
    spent, due, steps = np.zeros((4, 5)), np.zeros((4, 5)), 220
    plans, mixes = run_ahead(planner, held, steps, LAG)
    planned = 0
    for plan, mix in zip(plans, mixes, strict=True):
        assert mix.stage == sum(planned >= end for end in (300_000, 500_000, 650_000))
        planned += plan.planned.sum()
        tokens = held(plan)
        spent[mix.stage] += tokens
        due[mix.stage] += mix.shares * tokens.sum()
    realised_shares = spent / spent.sum(1, keepdims=True)
    assert np.abs(realised_shares - due / due.sum(1, keepdims=True)).max() < 0.005
    assert realised_shares[0, 3:].sum() == 0 and realised_shares[3, :3].sum() == 0
    assert realised_shares[2, 3:].sum() == pytest.approx(0.25, abs=0.005)


def test_what_a_starved_stream_was_owed_is_not_paid_in_the_next_stage():
    # A task whose records all give nothing is owed the tokens of a whole stage when that stage ends.
    stages = [{"tokens": 100_000}, {"budgets": {"monolingual": 9, "bilingual": 1}}]
    planner, _ = mixed_by(SamplingConfig.model_validate({"stages": stages}))
    spent = np.zeros((2, 5))

    def held(plan):
        tokens = plan.planned.copy()
        tokens[3:] *= planner.mix(plan.step).stage == 1
        spent[planner.mix(plan.step).stage] += tokens
        return tokens

    run_ahead(planner, held, 100, 0)
    shares = spent / spent.sum(1, keepdims=True)
    assert shares[0, 3:].sum() == 0 and shares[1, 3:].sum() == pytest.approx(0.1, abs=0.005)


def test_a_task_that_was_shut_is_not_paid_for_the_time_before():
    planner, held = mixed_by(SamplingConfig())
    plans, mixes = run_ahead(planner, held, 60, 1, {1: ("moved/tlm/mmlm", 1.0), 30: ("moved/tlm/mmlm", 0.0)})
    shut = sum(plan.planned for plan in plans[5:30])
    after = sum(plan.planned for plan in plans[34:])
    assert shut[3:].sum() <= 512 and after[3:].sum() / after.sum() == pytest.approx(0.5, abs=0.01)


def test_capped_streams_are_read_to_their_end_and_then_the_run_is_over():
    sampling = SamplingConfig.model_validate({"maximum_epochs": 3})
    planner, held = mixed_by(sampling, sizes=(9000, 4000, 700, 4000, 500))
    plans, _ = run_ahead(planner, held, 10_000, LAG)
    assert planner.exhausted(len(plans) + 1)
    records = np.concatenate([plan.records for plan in plans])
    for number, stream in enumerate(planner.streams):
        times = np.bincount(records[records[:, 0] == number, 1], minlength=len(stream))
        assert times.max() <= 3
        assert times.sum() >= 3 * len(stream) - 2048 / 60  # but for what is left over of the last half step
    assert all(2 * plan.planned.sum() >= 4096 for plan in plans)
    assert min(plan.planned.sum() for plan in plans[:-5]) > 0.9 * 4096
    again, _ = mixed_by(sampling, sizes=(9000, 4000, 700, 4000, 500))
    again.restore(json.loads(json.dumps(planner.state())))
    again.plan()
    assert again.exhausted(len(plans) + 1)


def test_a_stage_begins_with_an_empty_account():
    planner, held = mixed_by(SamplingConfig.model_validate({"stages": [{"tokens": 40_000}, {}]}))
    while planner.mix(planner._state.step).stage == 0:
        plan = planner.plan()
        planner.feedback(plan.step, held(plan))
    state = planner._state
    tilted = state._replace(owed=np.array([3e12, -3e12, 0, 0, 0]).astype(np.int64))
    plan, after = planner.plan_from(state)
    other, after_other = planner.plan_from(tilted)
    assert np.array_equal(plan.records, other.records) and np.array_equal(after.owed, after_other.owed)
    # Within a stage it would count.
    tilted = after._replace(owed=tilted.owed)
    assert not np.array_equal(planner.plan_from(after)[0].planned, planner.plan_from(tilted)[0].planned)
