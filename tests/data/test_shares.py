"""Shares: 1 in all, floors kept, what ends or is shut gives to whom it should."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.index import Rule
from data.recipe import UserError
from data.sampling import Part, Stream
from data.settings.mixed_alignment import PSEUDO_TOKENS, MixedAlignmentConfig
from data.shares import Shares, with_floors
from data.stages import SamplingConfig
from data.tasks import TASKS

LANGUAGES = ("de", "en", "fr", "th")
SIZES = {"de": 5000, "en": 90000, "fr": 800, "th": 30}


def stream(task: str, *languages: str) -> Stream:
    tokens = np.array([min(SIZES[language] for language in languages)], np.int32)
    sides = (Rule(0, 1, 1),) * len(languages)
    part = Part(0, sides, tokens, int(tokens[0]) * len(languages))
    return Stream(f"{task}/{'-'.join(languages)}", TASKS[task], languages, (part,))


PAIRS = [(a, b) for n, a in enumerate(LANGUAGES) for b in LANGUAGES[n + 1 :]]
STREAMS = [
    *(stream("mmlm", language) for language in LANGUAGES),
    *(stream("tlm", *pair) for pair in PAIRS),
    *(stream("camlm", *pair) for pair in PAIRS),
    *(stream("mixed_alignment", language) for language in LANGUAGES),
]
OPEN = np.zeros(len(STREAMS), bool)


def tasks(**gates: Any) -> Any:
    """Settings of the four tasks, as far as shares ask for them."""
    names = dict.fromkeys(stream.task.name for stream in STREAMS)
    found = {name: SimpleNamespace(weight=1.0, gate=gates.get(name)) for name in names}
    return SimpleNamespace(enabled=lambda: found)


def shares_of(of_tasks: Any = None, **sampling: Any) -> Shares:
    return Shares(STREAMS, of_tasks or tasks(), SamplingConfig.model_validate(sampling))


def of_task(shares: np.ndarray, *names: str) -> float:
    return float(shares[[stream.task.name in names for stream in STREAMS]].sum())


def of_language(shares: np.ndarray, task: str, language: str) -> float:
    members = [s.task.name == task and language in s.languages for s in STREAMS]
    return float(shares[members].sum()) / of_task(shares, task)


def only(*names: str) -> np.ndarray:
    """All streams ended but those of these tasks."""
    return np.array([stream.task.name not in names for stream in STREAMS])


temperatures = st.floats(0, 1) | st.builds(
    lambda start, end, tokens: {"start": start, "end": end, "tokens": tokens},
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 1000),
)


@settings(max_examples=60)
@given(
    language_temperature=temperatures,
    pair_temperature=temperatures,
    language_floor=st.floats(0, 0.25),
    tokens=st.integers(0, 2000),
    ended=st.lists(st.booleans(), min_size=len(STREAMS), max_size=len(STREAMS)),
    moved=st.floats(0, 0.8),
)
def test_shares_are_1_in_all_none_below_0_and_none_for_what_has_ended(
    tokens: int, ended: list[bool], moved: float, **sampling: Any
) -> None:
    mix = shares_of(**sampling)(tokens, np.array(ended), {"moved/camlm/mmlm": moved})
    assert (mix.shares >= 0).all() and not mix.shares[ended].any()
    assert mix.shares.sum() == pytest.approx(0 if all(ended) else 1, abs=1e-12)


floors = st.dictionaries(st.sampled_from(LANGUAGES), st.floats(0, 1), min_size=1).filter(
    lambda given: sum(given.values()) <= 1
)


@settings(max_examples=100)
@given(floors, st.floats(0, 1))
def test_floors_hold_in_every_task_for_languages_and_for_pairs(
    floor: dict[str, float], temperature: float
) -> None:
    mix = shares_of(language_floor=floor, language_temperature=temperature, pair_temperature=temperature)(
        0, OPEN, {}
    )
    plain = shares_of(language_temperature=temperature, pair_temperature=temperature)(0, OPEN, {})
    for task in ("mmlm", "tlm", "camlm", "mixed_alignment"):
        assert of_task(mix.shares, task) == pytest.approx(of_task(plain.shares, task))
        for language, least in floor.items():
            assert of_language(mix.shares, task, language) >= least - 1e-8


def test_one_floor_for_all_may_leave_every_language_the_same() -> None:
    mix = shares_of(language_floor=0.25, language_temperature=1.0)(0, OPEN, {})
    for language in LANGUAGES:
        assert of_language(mix.shares, "mmlm", language) == pytest.approx(0.25)


def test_a_floor_that_holds_already_changes_nothing_and_others_keep_their_proportions() -> None:
    plain = np.array([0.5, 0.3, 0.19, 0.01])
    names = [(language,) for language in "abcd"]
    assert with_floors(plain, names, {"a": 0.2, "c": 0.19}).tolist() == plain.tolist()
    assert with_floors(plain, names, {"d": 0.1}) == pytest.approx(
        np.array([50, 30, 19, 0]) / 99 * 0.9 + [0, 0, 0, 0.1]
    )
    # What is taken from the others brings a second one to its floor.
    assert with_floors(plain, names, {"d": 0.2, "c": 0.18})[2:] == pytest.approx([0.18, 0.2])


def test_what_has_ended_gives_to_its_task_then_to_its_side_then_to_the_other() -> None:
    shares = shares_of()
    whole = shares(0, OPEN, {}).shares
    assert [of_task(whole, task) for task in ("mmlm", "tlm", "camlm")] == pytest.approx([0.25] * 3)
    one = OPEN.copy()
    one[STREAMS.index(next(s for s in STREAMS if s.name == "mmlm/en"))] = True
    found = shares(0, one, {}).shares
    assert of_task(found, "mmlm") == pytest.approx(0.25) and of_language(found, "mmlm", "en") == 0
    ratio = of_language(found, "mmlm", "de") / of_language(found, "mmlm", "fr")
    assert ratio == pytest.approx(of_language(whole, "mmlm", "de") / of_language(whole, "mmlm", "fr"))
    found = shares(0, only("tlm", "camlm", "mixed_alignment"), {}).shares
    assert of_task(found, "mixed_alignment") == pytest.approx(0.5) and of_task(found, "tlm") == pytest.approx(
        0.25
    )
    found = shares(0, only("mmlm"), {}).shares
    assert of_task(found, "mmlm") == pytest.approx(1)
    assert not shares(0, only(), {}).shares.any()


def test_a_stage_whose_tasks_have_ended_goes_on_with_whatever_can_be_read() -> None:
    shares = shares_of(stages=[{"tokens": 10**9, "budgets": {"monolingual": 1, "bilingual": 0}}, {}])
    assert of_task(shares(0, OPEN, {}).shares, "tlm", "camlm") == 0
    assert of_task(shares(0, only("tlm"), {}).shares, "tlm") == pytest.approx(1)


def test_stages_change_weights_and_budgets() -> None:
    shares = shares_of(
        stages=[{"tokens": 100, "weights": {"tlm": 3, "mmlm": 0}}, {"budgets": {"bilingual": 3}}]
    )
    first, second = shares(99, OPEN, {}), shares(100, OPEN, {})
    assert (first.stage, second.stage) == (0, 1)
    assert of_task(first.shares, "tlm") == pytest.approx(0.5 * 3 / 4) and of_task(first.shares, "mmlm") == 0
    assert of_task(second.shares, "tlm") == pytest.approx(0.75 * 3 / 4)
    assert of_task(second.shares, "mixed_alignment") == pytest.approx(0.25)


def test_budgets_that_were_moved_go_where_they_should_and_the_others_keep_theirs() -> None:
    found = shares_of()(0, OPEN, {"moved/camlm/mmlm": 0.8}).shares
    assert of_task(found, "camlm") == pytest.approx(0.05) and of_task(found, "mmlm") == pytest.approx(0.45)
    assert [of_task(found, task) for task in ("tlm", "mixed_alignment")] == pytest.approx([0.25] * 2)
    # Into a task that has ended nothing goes.
    found = shares_of()(0, only("tlm", "camlm", "mixed_alignment"), {"moved/camlm/mmlm": 0.8}).shares
    assert of_task(found, "camlm") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("accuracy", "tokens", "opens"),
    [
        (0.2, None, {(0, False): 0, (10**12, False): 0, (0, True): 1}),
        (None, 500, {(0, False): 0, (499, False): 0, (500, False): 1}),
        (0.2, 500, {(0, False): 0, (0, True): 1, (500, False): 1}),
        (None, None, {(0, False): 1}),
    ],
)
def test_a_gate_opens_by_accuracy_or_by_tokens(
    monkeypatch: pytest.MonkeyPatch,
    accuracy: float | None,
    tokens: int | None,
    opens: dict[tuple[int, bool], int],
) -> None:
    monkeypatch.setattr("data.shares._WHILE_SHUT", {"mixed_alignment": "mmlm"})
    gate = SimpleNamespace(camlm_accuracy=accuracy, tokens=tokens)
    shares = shares_of(tasks(mixed_alignment=gate))
    for (planned, decided), open_ in opens.items():
        found = shares(planned, OPEN, {"gate/mixed_alignment": 1} if decided else {}).shares
        assert of_task(found, "mixed_alignment") == pytest.approx(0.25 * open_)
        assert of_task(found, "mmlm") == pytest.approx(0.25 if open_ else 0.5)
    found = shares(0, only("tlm", "mixed_alignment"), {}).shares  # nobody to give to: its side stands back
    assert of_task(found, "tlm") == pytest.approx(0.5 if opens[0, False] else 1)


def test_the_gate_of_a_generator_is_told_and_changes_no_share() -> None:
    generators = {"dictionary": 1, "pseudo_tokens": 1}
    gate = {"camlm_accuracy": 0.2, "tokens": 500}
    mixed = MixedAlignmentConfig.model_validate({"generators": generators, "pseudo_tokens": {"gate": gate}})
    of_tasks = tasks()
    of_tasks.enabled()["mixed_alignment"] = mixed
    shares = shares_of(of_tasks)
    before, after, decided = (
        shares(tokens, OPEN, decisions)
        for tokens, decisions in ((499, {}), (500, {}), (0, {f"gate/{PSEUDO_TOKENS}": 1}))
    )
    assert before.shut == (PSEUDO_TOKENS,) and after.shut == decided.shut == ()
    assert np.array_equal(before.shares, after.shares) and before.shares.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"stages": [{"tokens": 5, "weights": dict.fromkeys(("mmlm", "tlm", "camlm", "mixed_alignment"), 0)}, {}]},
         "see 'sampling.stages.0.budgets'"),
        ({"language_floor": {"xx": 0.1}}, "names xx; languages: de, en, fr, th"),
        ({"stages": [{"tokens": 5}, {"language_floor": 0.3}]}, "'sampling.stages.1.language_floor' 0.3: 4 languages"),
    ],
)  # fmt: skip
def test_what_no_stream_can_keep_is_refused(sampling: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        shares_of(**sampling)
