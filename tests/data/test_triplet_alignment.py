"""Triplets for contrastive alignment: a pair and keys that nobody is to find, with groups that know equal texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.recipe import UserError, parse_recipe, read_recipe
from data.settings.task import TripletConfig
from data.tally import Tally
from data.task import Draw, Draws, Records
from data.texts import Texts, TextSegment
from data.triplet_alignment import make_triplet_alignment
from tests.data.drawn import segments_of
from tests.small_teacher import write_margin_recipe
from training.build import DataParts, maker_from, open_data, planner_of
from training.config import Recipe


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_margin_recipe(tmp_path_factory.mktemp("triplets"))


@pytest.fixture(scope="module")
def recipe(path: Path) -> Recipe:
    return parse_recipe(read_recipe(path), Recipe)


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> DataParts:
    return open_data(recipe)


def text(number: int, group: int) -> TextSegment:
    return TextSegment(number % 3, np.arange(10, 13 + 40 * number, dtype=np.int32), "text", group)


def test_anchor_and_positive_are_a_pair_and_the_negatives_are_keys_with_their_own_groups(
    data: DataParts,
) -> None:
    rows = [[text(0, 5), text(1, 5), text(2, 6), text(0, 7)], [text(1, 8), text(0, 8), text(2, 5)]]
    draws = Draws.of([Draw(1, stream, "triplet_alignment/de-en", 0, 0, 400) for stream in (4, 6)])
    texts = Texts.of([each for row in rows for each in row])
    (part,) = make_triplet_alignment(Records(texts, np.array([4, 3]), draws), data.material, TripletConfig())
    laid = part.laid
    assert laid.pairs.tolist() == [[0, 1], [4, 5]] and laid.pair_examples.tolist() == [0, 1]
    assert laid.negatives.tolist() == [2, 3, 6] and laid.negative_groups.tolist() == [6, 7, 5]
    assert laid.groups.tolist() == [5, 8] and laid.streams.tolist() == [4, 6] and laid.compared
    assert laid.lengths.tolist() == [min(len(each.ids), 62) + 2 for row in rows for each in row]
    assert not len(laid.triplets.anchors) and not laid.predictions.any()


def test_each_task_of_triplets_reads_as_many_negatives_as_it_wants(data: DataParts) -> None:
    counts: dict[str, set[int]] = {}
    for stream in data.streams:
        if stream.task.reads == "triplets":
            found = counts.setdefault(stream.task.name, set())
            found.update(len(segments_of(stream, record)) for record in range(len(stream)))
    assert counts == {"adaptive_margin": {3, 4, 5}, "triplet_alignment": {3, 4}}


def test_batches_hold_the_negatives_as_documents_that_are_compared_and_in_no_pair(
    recipe: Recipe, data: DataParts
) -> None:
    maker, planner = maker_from(recipe, data), planner_of(recipe, data)
    corpus = data.store.corpora["triplets"]
    groups_of_texts = {
        tuple(corpus.ids(s)[:62].tolist()): int(corpus.segment_groups[s].view(np.int64))
        for s in range(corpus.segments)
    }
    mine = [stream.task.name == "triplet_alignment" for stream in data.streams]
    pairs = negatives = 0
    for number in range(8):
        if number % 4 == 0:
            plan = planner.plan()
            planner.feedback(number // 4 + 1, plan.planned)
        batch, tally, _ = maker(plan.rows(2 * (number % 4), 2 * (number % 4) + 2))
        of_triplets = np.array(mine)[batch["pair_stream"]]
        pairs += int(of_triplets.sum())
        negatives += len(batch["negatives"])
        assert tally[mine, Tally.PAIRS].sum() == of_triplets.sum() and not tally[mine, Tally.TRIPLETS].any()
        assert not set(batch["negatives"].tolist()) & set(batch["pairs"].ravel().tolist())
        assert batch["negatives"].max(initial=-1) < batch["sentence_documents"]
        starts = batch["document_starts"]
        for document, group in zip(batch["negatives"], batch["negative_groups"], strict=True):
            ids = batch["token_ids"][starts[document] + 1 : starts[document + 1] - 1]
            assert groups_of_texts[tuple(ids.tolist())] == group
    assert pairs > 3 and pairs <= negatives <= 2 * pairs


def test_what_it_asks_for_is_checked(path: Path) -> None:
    with pytest.raises(UserError, match="must hold 11 documents"):
        parse_recipe(read_recipe(path, ["tasks.triplet_alignment.negatives=9"]), Recipe)
    without = [f"tasks.{name}=null" for name in ("adaptive_margin", "in_batch_margin", "mixed_alignment")]
    alone = [*without, "tasks.translation_alignment=null", "alignment.additive_margin=0.1"]
    assert parse_recipe(read_recipe(path, alone), Recipe).tasks.aligns
    with pytest.raises(UserError, match="none of them is on"):
        parse_recipe(read_recipe(path, [*alone, "tasks.triplet_alignment=null"]), Recipe)
    unscored = parse_recipe(
        read_recipe(path, [*without, "corpora.triplets.scores=null"]), Recipe
    )  # nobody asks for scores
    assert unscored.tasks.triplets().keys() == {"triplet_alignment"}
