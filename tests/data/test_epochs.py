"""Caps on epochs: every record of a corpus as often as its cap says, no oftener, whatever else is in the stream."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.epochs import Epochs


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=5))
def test_every_record_comes_as_often_as_its_corpus_may_be_read(parts: list[tuple[int, int]]) -> None:
    epochs = Epochs(parts)
    assert epochs.records_in_all == sum(records * cap for records, cap in parts)
    seen: Counter[int] = Counter()
    last = (0, -1)
    for cursor in range(epochs.records_in_all):
        place = epochs.place(cursor)
        assert place > last
        last = place
        seen[int(epochs.records(place[0], np.array([place[1]]))[0])] += 1
    caps = np.repeat([cap for _, cap in parts], [records for records, _ in parts])
    assert seen == Counter(dict(enumerate(caps.tolist())))


def test_the_others_go_on_when_a_corpus_has_left() -> None:
    epochs = Epochs([(3, 1), (2, None), (4, 2)])
    assert epochs.records_in_all is None
    assert [epochs.size(epoch) for epoch in range(4)] == [9, 6, 2, 2]
    assert (
        epochs.place(9) == (1, 0)
        and epochs.place(15) == (2, 0)
        and epochs.place(16 + 2 * 10**9) == (10**9 + 2, 1)
    )
    assert epochs.records(1, np.arange(6)).tolist() == [3, 4, 5, 6, 7, 8]
    assert epochs.records(2, np.arange(2)).tolist() == [3, 4]


@pytest.mark.parametrize("cursor", [0, 56, 57, 1000])
def test_without_caps_it_is_division(cursor: int) -> None:
    epochs = Epochs([(57, None)])
    assert epochs.place(cursor) == divmod(cursor, 57)
    assert epochs.records(cursor // 57, np.arange(57)).tolist() == list(range(57))
