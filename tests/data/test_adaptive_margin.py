"""Triplets from disk to batch: documents, gaps, languages; and the teacher's vectors beside their pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from data.adaptive_margin import make_adaptive_margin
from data.config import CorpusConfig
from data.laid import Triplet
from data.microbatch import MicrobatchMaker
from data.mixed_forms import make_mixed_alignment
from data.recipe import UserError, parse_recipe, read_recipe
from data.records import ScoredTriplet
from data.sampling import streams_of
from data.settings.margin import AdaptiveMarginConfig
from data.settings.mixed_alignment import MixedAlignmentConfig
from data.sources import Reject, read_corpus
from data.tally import Tally
from data.task import Draw
from data.tasks import make_translation_alignment
from data.teaching import Taught
from data.texts import TextSegment
from tests.data.drawn import made_of, segments_of
from tests.small_teacher import WIDTH, write_margin_recipe
from training.build import DataParts, maker_from, maker_of, open_data, planner_of
from training.config import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse_recipe(read_recipe(write_margin_recipe(tmp_path_factory.mktemp("margin"))), Recipe)


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> DataParts:
    return open_data(recipe)


def segment(number: int, score: float = math.nan, teacher: np.ndarray | None = None) -> TextSegment:
    return TextSegment(
        number % 3, np.arange(10, 10 + 40 * number + 3, dtype=np.int32), "text", 5, score, teacher
    )


DRAW = Draw(1, 4, "adaptive_margin/de-en", 0, 0, 400)


def test_a_triplet_is_a_document_for_each_text_and_the_teachers_gaps(data: DataParts) -> None:
    segments = [segment(0), segment(1, 0.75), segment(2, 0.5), segment(0, 1.0)]
    example = made_of(make_adaptive_margin, segments, DRAW, data.material, AdaptiveMarginConfig()).example
    assert example is not None and example.triplets == [Triplet(0, 1, [2, 3], [0.25, -0.25])]
    assert example.stream == 4 and not example.pairs
    for document, source in zip(example.documents, segments, strict=True):
        kept = source.ids[:62].tolist()
        assert document.token_ids.tolist() == [0, *kept, 2] and document.language == source.language
        assert document.context_length == len(document.token_ids) and not len(document.predicted)


def test_a_triplet_that_the_teacher_has_not_scored_is_none_but_for_a_fixed_margin(data: DataParts) -> None:
    segments = [segment(0), segment(1), segment(2, 0.5)]
    assert (
        made_of(make_adaptive_margin, segments, DRAW, data.material, AdaptiveMarginConfig()).example is None
    )
    fixed = AdaptiveMarginConfig(form="fixed", offset=0.2)
    example = made_of(make_adaptive_margin, segments, DRAW, data.material, fixed).example
    assert example is not None and example.triplets[0].teacher_gaps == [0.0]


def test_streams_of_triplets_are_by_languages_and_hold_only_the_negatives_that_there_are(
    recipe: Recipe, data: DataParts
) -> None:
    streams = [stream for stream in data.streams if stream.task.name == "adaptive_margin"]
    assert sum(map(len, streams)) == data.store.corpora["triplets"].records == 160
    assert all("en" in stream.languages and len(stream.languages) == 2 for stream in streams)
    corpus = data.store.corpora["triplets"]
    counts = set()
    for stream in streams:
        rooms = stream.room(np.arange(len(stream)), 0, 1, 64)
        for record in range(len(stream)):
            segments = segments_of(stream, record)
            assert {corpus.language(s) for s in segments} == set(stream.languages)
            assert len(set(corpus.segment_record[segments])) == 1
            counts.add(len(segments))
            assert rooms[record] == sum(min(corpus.segment_lengths[s] + 2, 64) for s in segments)
    assert counts == {3, 4, 5}
    fewer = recipe.tasks.model_copy(update={"adaptive_margin": AdaptiveMarginConfig(negatives=1)})
    for stream in streams_of(data.store, fewer, recipe.sampling, data.material.lexicon):
        if stream.task.name == "adaptive_margin":
            assert len(segments_of(stream, 0)) == 3
            assert data.streams and segments_of(stream, 0) == sorted(segments_of(stream, 0))


def test_batches_hold_scores_of_the_corpus_and_vectors_of_the_teacher(
    recipe: Recipe, data: DataParts
) -> None:
    maker, plan = maker_from(recipe, data), planner_of(recipe, data).plan()
    tally = np.zeros((len(data.streams), len(Tally)), np.int64)
    triplets = taught = 0
    for number in range(4):
        batch, found, _ = maker(plan.rows(2 * number, 2 * number + 2))
        tally += found
        assert batch["teacher_vectors"].shape == (batch["sentence_documents"], WIDTH)
        assert batch["triplet_negatives"].max(initial=-1) < batch["sentence_documents"]
        seen = batch["teacher_vectors"].any(1)
        assert not seen[batch["triplet_anchor"]].any()  # asked of pairs only
        triplets += len(batch["triplet_anchor"])
        taught += int(seen[batch["pairs"]].all(1).sum())
        given = batch["teacher_gaps"][batch["triplet_negatives"] >= 0]
        assert (np.abs(given) <= 0.9001).all() and given.all()
    assert tally[:, Tally.TRIPLETS].sum() == triplets > 0
    assert tally[:, Tally.TAUGHT_PAIRS].sum() == taught > 0
    assert taught < tally[:, Tally.PAIRS].sum()
    of_worker = maker_of(recipe)()
    assert isinstance(of_worker, MicrobatchMaker)
    assert np.array_equal(
        of_worker(plan.rows(0, 2)).arrays["teacher_vectors"], maker(plan.rows(0, 2)).arrays["teacher_vectors"]
    )


def test_a_text_keeps_its_vector_whatever_its_place_in_the_pair_and_its_mixed_form_has_the_same(
    data: DataParts,
) -> None:
    vectors = [np.full(WIDTH, value, np.float16) for value in (0.1, 0.2)]
    pair = [segment(0, teacher=vectors[0]), segment(1, teacher=vectors[1])]
    orders = set()
    for record in range(12):
        draw = DRAW._replace(record=record)
        example = made_of(
            make_translation_alignment, pair, draw, data.material, AdaptiveMarginConfig()
        ).example
        assert example is not None
        for document in example.documents:
            source = pair[0] if len(document.token_ids) == len(pair[0].ids) + 2 else pair[1]
            assert np.array_equal(document.teacher, source.teacher)
        orders.add(len(example.documents[0].token_ids))
    assert len(orders) == 2
    corpus, lexicon = data.store.corpora["rows"], data.material.lexicon
    assert lexicon is not None
    english = data.store.languages.index("en")
    made = 0
    for s in np.flatnonzero(corpus.segment_language == english)[:30].tolist():
        source = TextSegment(english, corpus.ids(s), corpus.text(s), 3, math.nan, vectors[0])
        config = MixedAlignmentConfig()
        example = made_of(
            make_mixed_alignment, [source], DRAW._replace(record=s), data.material, config
        ).example
        if example is not None:
            made += 1
            assert all(np.array_equal(document.teacher, vectors[0]) for document in example.documents)
    assert made > 5


def test_teachers_folders_that_lack_what_a_task_asks_for_are_refused(recipe: Recipe, data: DataParts) -> None:
    assert recipe.tasks.in_batch_margin is not None
    folder = recipe.tasks.in_batch_margin.teacher
    tasks = recipe.tasks.model_copy(update={"adaptive_margin": AdaptiveMarginConfig(teacher=folder)})
    with pytest.raises(UserError, match="tasks.adaptive_margin.teacher: .* has no scores of triplets"):
        Taught.open(tasks, data.store)
    assert Taught.open(recipe.tasks, data.store).width == WIDTH


def test_candidates_may_have_a_language_of_their_own_and_scores_may_be_left_to_a_teacher(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"a": "eins", "p": "one", "n": ["two"], "la": "de", "lc": "en"},
        {"a": "eins", "p": "one", "n": ["two"], "la": "de", "lc": "e n"},
        {"a": "eins", "p": "one", "n": ["two"], "la": "de"},
        {"a": "eins", "p": "one", "n": [], "la": "de", "lc": "en"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "kind": "scored",
        "format": "jsonl",
        "path": str(path),
        "anchor": "a",
        "positive": "p",
        "negatives": "n",
    }
    config = CorpusConfig.model_validate(
        {**keys, "language": {"field": "la"}, "candidates_language": {"field": "lc"}}
    )
    kept, *rejects = read_corpus(config, 100)
    assert isinstance(kept, tuple) and isinstance(kept[1], ScoredTriplet)
    assert (kept[1].language, kept[1].candidates_language) == ("de", "en") and np.isnan(kept[1].scores).all()
    reasons = [reject.reason for reject in rejects if isinstance(reject, Reject)]
    assert reasons == ["bad_language", "missing_field", "wrong_scores"]
    same = CorpusConfig.model_validate({**keys, "language": "de"})
    first = next(read_corpus(same, 100))
    assert (
        isinstance(first, tuple)
        and isinstance(first[1], ScoredTriplet)
        and first[1].candidates_language is None
    )
