"""The alignment guard on real translations: shifts are found where they begin, aligned text raises no alarm."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest

from data.config import CorpusConfig, DataConfig
from data.preparation import prepare
from data.recipe import UserError
from data.sources.shifts import Shift, check_alignment, find_shift
from tests.data.conftest import DEMO

Rows = list[tuple[str, str]]
PAIRS = [
    *(("en", other) for other in ("ar", "de", "el", "ja", "ko", "ru", "zh")), ("de", "fr"), ("ja", "zh"), ("he", "ru")
]  # fmt: skip
FEWEST_AFTER = 20  # lines behind a shift: at the very end of a file there is nothing to tell it by


@cache
def translations(name: str) -> list[dict[str, str]]:
    with gzip.open(DEMO / name) as file:
        return [json.loads(line)["t"] for line in file]


def rows_of(first: str, second: str, name: str = "parallel_train.jsonl.gz") -> Rows:
    return [(row[first], row[second]) for row in translations(name) if row.get(first) and row.get(second)]


def shifted(rows: Rows, at: int, side: int) -> Rows:
    """The second side lacks line ``at`` (-1), or has another line before it (1); the ends are cut to be equal."""
    first, second = ([row[i] for row in rows] for i in (0, 1))
    if side < 0:
        return list(zip(first[:-1], second[:at] + second[at + 1 :], strict=True))
    return list(zip(first, second[:at] + [second[at // 2]] + second[at:-1], strict=True))


def injected(pairs: list[tuple[str, str]], count: int) -> list[tuple[int, int, Shift | None]]:
    """(line from which on the second side is moved, side, what was found), each time of other lines."""
    random = Random(7)
    texts = {pair: rows_of(*pair) for pair in pairs}
    found = []
    for number in range(count):
        rows = texts[pairs[number % len(pairs)]]
        length = min(random.choice([100, 300, 1000, 3000]), len(rows))
        start = random.randrange(len(rows) - length + 1)
        at, side = random.randrange(1, length - FEWEST_AFTER), random.choice([-1, 1])
        found.append((at + 1, side, find_shift(shifted(rows[start : start + length], at, side))))
    return found


def check_injected(found: list[tuple[int, int, Shift | None]]) -> None:
    caught = [(line, side, shift) for line, side, shift in found if shift is not None]
    assert len(caught) >= 0.99 * len(found)
    assert sum(side == shift.lines for _, side, shift in caught) >= 0.99 * len(caught)
    away = np.abs([shift.line - line for line, _, shift in caught])
    assert np.median(away) <= 2 and np.quantile(away, 0.99) <= 10


def alarms(pairs: list[tuple[str, str]], names: tuple[str, ...]) -> list[Shift | None]:
    return [find_shift(rows_of(*pair, name)) for pair in pairs for name in names]


def test_a_shift_is_found_where_it_begins_and_on_which_side() -> None:
    check_injected(injected(PAIRS, 40))


def test_aligned_text_raises_no_alarm() -> None:
    assert alarms(PAIRS[::3], ("parallel_train.jsonl.gz", "udhr.jsonl.gz")) == [None] * 8


@pytest.mark.slow
def test_of_300_shifts_in_all_pairs_of_languages_99_percent_are_found() -> None:
    pairs = [pair for pair in combinations(sorted(languages()), 2) if len(rows_of(*pair)) >= 150]
    check_injected(injected(Random(1).sample(pairs, 150), 300))


@pytest.mark.slow
def test_of_all_pairs_of_languages_one_percent_at_most_raises_an_alarm() -> None:
    found = alarms(list(combinations(sorted(languages()), 2)), ("parallel_train.jsonl.gz", "udhr.jsonl.gz"))
    assert len(found) == 462 and sum(shift is not None for shift in found) <= 4


def languages() -> set[str]:
    return {language for row in translations("udhr.jsonl.gz") for language in row}


def test_lines_that_fit_nowhere_or_are_all_alike_raise_no_alarm() -> None:
    rows = rows_of("en", "de")[:600]
    second = [text for _, text in rows]
    Random(3).shuffle(second)
    assert find_shift(zip([text for text, _ in rows], second, strict=True)) is None
    assert find_shift([("Yes", "Ja")] * 1000) is None
    assert find_shift([("", "a"), ("\x00\u2028", "\U0010ffff"), ("1", "")] * 100) is None
    assert find_shift([]) is None


@pytest.mark.parametrize("count", [2, 3])
def test_several_lines_at_once_are_found_too(count: int) -> None:
    first, second = ([row[side] for row in rows_of("en", "ko")] for side in (0, 1))
    found = find_shift(zip(first[:-count], second[:500] + second[500 + count :], strict=True))
    assert found is not None and found.lines == -count and abs(found.line - 501) <= 5
    found = find_shift(
        zip(first[:-count], second[:500] + second[:count] + second[500 : -2 * count], strict=True)
    )
    assert found is not None and found.lines == count and abs(found.line - 501) <= 5


def test_in_a_long_file_a_part_of_every_stretch_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of("en", "de")
    monkeypatch.setattr("data.sources.shifts.WHOLE", 400)
    monkeypatch.setattr("data.sources.shifts.STRETCH", 200)
    monkeypatch.setattr("data.sources.shifts.LOOKED_AT", 50)
    assert find_shift(rows) is None
    for at, after, line in ((300, 299, 301), (1010, 1009, 1011), (1130, 1049, 1200), (700, 649, 800)):
        found = find_shift(shifted(rows, at, -1))
        assert found is not None and found.lines == -1
        assert abs(found.after - after) <= 5 and abs(found.line - line) <= 5


def test_a_shift_is_refused_with_its_line_unless_the_recipe_says_otherwise(
    configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    rows = shifted(rows_of("en", "de")[:300], 150, -1)
    for side, language in enumerate(("en", "de")):
        lines = "\n".join(row[side].replace("\n", " ") for row in rows)
        (tmp_path / f"a.{language}").write_text(lines + "\n")
    settings = {
        "kind": "parallel",
        "format": "text",
        "paths": {x: str(tmp_path / f"a.{x}") for x in ("en", "de")},
    }
    with pytest.raises(
        UserError, match=r"corpora.a: .*a.en and .*a.de slide apart at about line 15\d: .* lacks 1 line"
    ):
        check_alignment(CorpusConfig.model_validate(settings), "corpora.a")
    with pytest.raises(UserError, match="slide apart"):
        prepare(configure(corpora={"a": settings}), workers=1)
    assert not (tmp_path / "store").exists()
    for changes in ({"cleaning": {"alignment": "off"}}, {}):
        corpus = settings if changes else {**settings, "cleaning": {"alignment": "off"}}
        store = prepare(configure(corpora={"a": corpus}, **changes), workers=1, rebuild=True)
        assert store.corpora["a"].records == 299
