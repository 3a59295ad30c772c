"""Which written ids are of a second language: names, copies and shared words are none, words of it are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.batch import PackedBatch
from data.laid import Document, Example
from objectives.second_language import ScriptTables, UseOfIds, of_one_language, of_the_language
from tests.objectives.test_back_translation import asking, generation_of
from tests.packed import pack

# Ids 4 to 13 are Latin (script 1), 14 to 19 Cyrillic (script 2), 20 and 21 have no letters.
EN, DE, RU, RARE = range(4)
SCRIPTS = ScriptTables(
    torch.tensor([0] * 4 + [1] * 10 + [2] * 6 + [0] * 3),
    torch.tensor([[False, True, False], [False, True, False], [False, False, True], [False, True, False]]),
)
HAUS, NAME, DIE, ONCE, TWIN, DOM, DJANGO, STOP = 4, 5, 6, 7, 8, 14, 9, 20
COUNTS = np.zeros((4, 23), np.int64)
COUNTS[EN, [HAUS, NAME, DIE, TWIN, 10, STOP]] = [1, 50, 39, 26, 844, 40]
COUNTS[DE, [HAUS, NAME, DIE, ONCE, TWIN, 10, STOP]] = [60, 50, 160, 1, 103, 1, 1625]
COUNTS[RU, [DOM, 15, NAME, DJANGO, STOP]] = [1, 800, 9, 50, 140]
COUNTS[RARE, [11, 12]] = [9, 1]
USE = UseOfIds.of(COUNTS, "cpu")


@pytest.mark.parametrize(
    ("source", "target", "text", "written", "second"),
    [
        (EN, DE, [10], HAUS, True),
        (EN, DE, [10, HAUS], HAUS, False),  # a copy
        (EN, DE, [10], NAME, False),  # as often in both
        (EN, DE, [10], DIE, False),  # 80 of 1,000 tokens and 39
        (EN, DE, [10], TWIN, False),  # 51.5 and 26
        (EN, DE, [10], 10, False),  # hardly of the target
        (EN, DE, [10], 13, False),  # in no text at all
        (EN, DE, [10], STOP, False),  # no letter, however often
        (EN, DE, [10], ONCE, False),  # one of 2,000 against what may stand once among 1,000
        (EN, RARE, [10], 12, True),  # one of ten against one of 1,000
        (RARE, DE, [11], HAUS, False),  # of ten tokens nobody knows what the language lacks
        (EN, RU, [10], DOM, True),  # another script: once is enough
        (RARE, RU, [11], DOM, True),
        (EN, RU, [10], NAME, False),  # Latin is not what Russian is written in
        (EN, RU, [10], DJANGO, False),
        (RU, EN, [15], 10, True),
        (RU, EN, [15], NAME, True),  # a Latin word in Russian text, that English has five times as often
        (RU, DE, [15], NAME, False),  # 25 of 1,000 and 9
        (DE, EN, [6], 10, True),
        (RU, DE, [15], ONCE, True),
    ],
)
def test_an_id_is_of_the_language_if_its_texts_say_so(
    source: int, target: int, text: list[int], written: int, second: bool
) -> None:
    document = asking([0, *text, 2], target, 1)
    document.language[: document.context_length] = source  # type: ignore[index]
    found = of_the_language(generation_of(document), torch.tensor([written]), SCRIPTS, USE)
    assert found.tolist() == [second]


def test_what_stands_in_another_text_of_the_batch_is_no_copy() -> None:
    batch = generation_of(asking([0, HAUS, 2], DE, 2), asking([0, 10, 2], DE, 1), asking([0, 10, 2], RU, 1))
    written = torch.tensor([HAUS, 10, HAUS, DOM])
    assert of_the_language(batch, written, SCRIPTS, USE).tolist() == [False, False, True, True]


def test_a_pair_is_of_one_language_if_any_of_its_written_texts_is() -> None:
    def text(*slots: int) -> Document:
        nothing = np.zeros(0, np.int64)
        return Document(
            np.full(6, 10, np.int32),
            np.arange(6) + 2,
            0,
            6,
            nothing,
            nothing,
            slots=np.array(slots, np.int64),
        )

    examples = [
        Example(0, [text(), text(1, 2)], [(0, 1)], generation=[asking([0, 2], DE, 2)]),  # 1: second
        Example(0, [text(), text()], [(0, 1)]),
        Example(1, [text(3, 4), text()], [(0, 1)], generation=[asking([0, 2], DE, 2)]),  # nothing
        Example(1, [text(3), text(1, 4)], [(0, 1)], generation=[asking([0, 2], DE, 3)]),  # 3: nothing
        Example(1, [text(3), text(1, 4)], [(0, 1)], generation=[asking([0, 2], DE, 3)]),  # 3, 4: second
        Example(2, [text(3)], generation=[asking([0, 2], DE, 1)]),  # compared with nothing
    ]
    batch = PackedBatch.from_arrays(pack(examples, 80, 1))
    second = torch.tensor([True, False, False, False, False, True, True, True, False, True, False])
    given_up = of_one_language(batch, second)
    assert given_up.tolist() == [False, False, True, True, False]
    kept = batch.without_pairs(given_up)
    assert kept.pairs.tolist() == [[0, 1], [2, 3], [8, 9]] and kept.pair_stream.tolist() == [0, 0, 1]
    assert torch.equal(kept.token_ids, batch.token_ids) and kept.sentence_documents == 10
