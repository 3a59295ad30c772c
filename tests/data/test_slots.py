"""What is taken out of a slot is what was put in, its own to keep; slots lie apart; too much is refused."""

import numpy as np
import pytest

from data.microbatch import Microbatch
from data.slots import Slots, bytes_needed
from data.tally import Tally, Unwritten


def microbatch(seed, tokens=64, generation=True):
    random = np.random.default_rng(seed)
    arrays = {
        "token_ids": random.integers(0, 99, tokens),
        "language_shown": random.random(tokens) < 0.5,
        "teacher_gaps": np.empty((0, 0), np.float32),
        "draws": random.random(tokens // 3),
        "sentence_tokens": 17,
        "generation": {"token_ids": random.integers(0, 9, 5), "generation": None} if generation else None,
    }
    tally = random.integers(0, 9, (3, len(Tally)))
    waiting = Unwritten(*(random.integers(0, 9, shape) for shape in (2, (2, len(Tally)), 4)))
    return Microbatch(arrays, tally, waiting if generation else None)


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, tuple):
        return all(same(mine, its) for mine, its in zip(one, other, strict=True))
    return one == other


def test_what_is_taken_out_is_what_was_put_in_and_is_kept_when_the_slot_is_used_again():
    slots = Slots(3, bytes_needed(64, 0))
    given = [microbatch(seed, generation=seed % 2 == 0) for seed in range(3)]
    handed = [slots.put(one, slot) for slot, one in enumerate(given)]
    assert all(len(one.header) < 3000 for one in handed)  # arrays are not in it
    taken = [slots.take(one, slot) for slot, one in enumerate(handed)]
    slots.put(microbatch(7), 1)
    assert all(same(mine, its) for mine, its in zip(taken, given, strict=True))
    taken[0].arrays["token_ids"][0] += 1  # not read-only: tensors are made of them
    assert not same(taken[0], given[0]) and same(slots.take(handed[0], 0), given[0])
    slots.close()


def test_more_than_a_slot_holds_is_refused_and_the_next_slot_stays():
    slots = Slots(2, 4096)
    behind = slots.put(microbatch(1, 8), 1)
    with pytest.raises(ValueError, match="more than the 4096 bytes of its slot"):
        slots.put(microbatch(2, 4096), 0)
    assert same(slots.take(behind, 1), microbatch(1, 8))
    slots.close()
