"""The first pass: what is written where, and the health of it, held to a count token by token."""

from __future__ import annotations

import numpy as np
import torch

from data.batch import PackedBatch
from data.laid import Document, Example
from model.generation import Decoding
from objectives.back_translation import Health, PseudoTokens, health_figures, health_of
from objectives.second_language import ScriptTables
from tests.packed import pack

VOCABULARY, LANGUAGES = 30, 4
# Ids 4 to 13 are of script 1, 14 to 23 of script 2, the rest has no letters. Language 3 uses both.
SCRIPTS = ScriptTables(
    torch.tensor([0] * 4 + [1] * 10 + [2] * 10 + [0] * 6),
    torch.tensor(
        [[False, True, False], [False, True, False], [False, False, True], [False, True, True]],
    ),
)


def asking(context: list[int], language: int, count: int) -> Document:
    ids = np.array([*context, *[29] * count], dtype=np.int32)
    languages = np.repeat([0, language], [len(context), count])
    places = len(context) + np.arange(count)
    return Document(
        ids, np.arange(len(ids)) + 2, languages, len(context), places, np.zeros(count, np.int64),
        draws=np.zeros(count), language_shown=True,
    )  # fmt: skip


def generation_of(*documents: Document) -> PackedBatch:
    arrays = pack(
        [Example(0, [document]) for document in documents], sum(len(d.token_ids) for d in documents), 1
    )
    return PackedBatch.from_arrays(arrays)


def test_health_is_counted_by_the_language_that_is_written() -> None:
    batch = generation_of(
        asking([0, 5, 6, 2], 1, 4), asking([0, 7, 2], 2, 3), asking([0, 8, 2], 1, 2), asking([0, 2], 3, 0)
    )
    #                    in x   same        no letter   |  other script, right one, in x of another text | ...
    ids = torch.tensor([5, 9, 9, 25] + [7, 14, 5] + [9, 9])
    found = health_of(batch, ids, SCRIPTS)
    wanted = torch.zeros(LANGUAGES, len(Health), dtype=torch.int64)
    wanted[1] = torch.tensor([6, 3 + 1, 1, 5, 5])  # tokens, distinct, copied, letters, in script
    wanted[2] = torch.tensor([3, 3, 1, 3, 1])
    assert found.tolist() == wanted.tolist()


def test_health_is_that_of_a_count_token_by_token_on_random_batches() -> None:
    random = np.random.default_rng(0)
    documents = [
        asking(
            [0, *random.integers(4, 28, size=random.integers(0, 9)), 2],
            int(random.integers(LANGUAGES)),
            int(random.integers(0, 7)),
        )
        for _ in range(60)
    ]
    batch = generation_of(*documents)
    ids = random.integers(4, 28, size=len(batch.predicted))
    wanted, first = np.zeros((LANGUAGES, len(Health)), dtype=np.int64), 0
    for document in documents:
        count, language = len(document.predicted), int(document.language[-1])
        mine = ids[first : first + count].tolist()
        first += count
        if not count:
            continue
        scripts = [int(SCRIPTS.of_ids[i]) for i in mine]
        wanted[language] += [
            count,
            len(set(mine)),
            sum(i in document.token_ids[: document.context_length] for i in mine),
            sum(s > 0 for s in scripts),
            sum(bool(SCRIPTS.of_languages[language, s]) for s in scripts),
        ]
    assert np.array_equal(health_of(batch, torch.from_numpy(ids), SCRIPTS).numpy(), wanted)


def test_a_batch_without_slots_is_generated_for_all_the_same_and_stays_as_it_is() -> None:
    plain = Document(
        np.array([0, 5, 2]), np.arange(3) + 2, 0, 3, np.array([1]), np.array([5]), slots=np.empty(0, np.int64)
    )
    batch = PackedBatch.from_arrays(pack([Example(0, [plain])], 8, 1))
    asked = []

    def generate(generation: PackedBatch, decoding: Decoding) -> torch.Tensor:
        asked.append(len(generation.token_ids))
        return torch.empty(0, dtype=torch.int64)

    filled, health, second = PseudoTokens(Decoding(range(4, 29)), SCRIPTS).write(generate, batch)
    assert asked == [0]
    assert torch.equal(filled.token_ids, batch.token_ids)
    assert health.shape == (LANGUAGES, len(Health)) and not health.any()
    assert second is None  # nobody asked


def test_figures_are_shares_of_all_and_of_the_languages_that_were_written_in() -> None:
    health = np.array([[0] * 5, [8, 6, 2, 5, 4], [2, 2, 2, 0, 0]])
    assert health_figures(health, ["de", "en", "fr"]) == {
        "pseudo/distinct_1": 0.8,
        "pseudo/copy_rate": 0.4,
        "pseudo/target_script_rate": 0.8,
        "pseudo/distinct_1/en": 0.75,
        "pseudo/copy_rate/en": 0.25,
        "pseudo/target_script_rate/en": 0.8,
        "pseudo/distinct_1/fr": 1.0,
        "pseudo/copy_rate/fr": 1.0,
    }
