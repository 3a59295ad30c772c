"""BTMLM's two documents token for token: what is asked, what is learned, what is never masked or predicted."""

from pathlib import Path

import numpy as np
import pytest

from data.back_translation import (
    fitted_length,
    make_btmlm,
    pseudo_count,
    room_of_text_and_pseudo,
    target_languages,
)
from data.recipe import UserError, parse_recipe, read_recipe
from data.sampling import bilingual_shares, streams_of
from data.settings.task import BackTranslationConfig
from data.settings.tasks import TasksConfig
from data.stages import SamplingConfig
from data.store import TokenStore
from data.task import Draw, Material
from data.texts import TextSegment
from data.tokenizer import Tokenizer
from tests.data.drawn import made_of
from training.config import Recipe

SAMPLING = SamplingConfig()


@pytest.fixture(scope="module")
def store(small_recipe):
    return TokenStore.open(Path(parse_recipe(read_recipe(small_recipe), Recipe).store))


@pytest.fixture(scope="module")
def material(store):
    return Material(
        Tokenizer.open(store.tokenizer_folder), None, store.languages, 64, bilingual_shares(store, SAMPLING)
    )


def draw(record, epoch=0):
    return Draw(1, 0, "btmlm/de", record, epoch, 0)


def segment(store, length=12, language="de"):
    ids = np.arange(100, 100 + length, dtype=np.int32)
    return TextSegment(store.languages.index(language), ids, "", 0)


def made(store, material, record=0, length=12, **settings):
    example = made_of(
        make_btmlm, [segment(store, length)], draw(record), material, BackTranslationConfig(**settings)
    ).example
    (document,), (asking,) = example.documents, example.generation
    return document, asking


def test_the_first_pass_asks_for_tokens_at_the_places_of_a_translation(store, material):
    document, asking = made(store, material)
    german, mask = store.languages.index("de"), material.tokenizer.mask_id
    assert asking.token_ids.tolist() == [0, *range(100, 112), 2, *[mask] * 6]  # x whole, nothing hidden
    assert asking.context_length == 14 and asking.predicted.tolist() == list(range(14, 20))
    # 2 to 15 are x's, 16 is the </s> that begins the other side of a pair.
    assert asking.position_ids.tolist() == [*range(2, 16), *range(17, 23)]
    target = int(asking.language[-1])
    assert target != german and material.bilingual[target] > 0
    assert asking.language.tolist() == [german] * 14 + [target] * 6
    assert asking.language_shown and not document.language_shown  # whether it is, the stream's maker draws
    assert asking.draws.shape == (6,) and len(set(asking.draws)) == 6
    assert ((asking.draws >= 0) & (asking.draws < 1)).all() and len(asking.slots) == 0


def test_the_second_pass_has_x_masked_and_the_pseudo_tokens_in_the_layout_of_a_pair(store, material):
    for record in range(40):
        document, asking = made(store, material, record, mask_rate=0.4)
        restored = document.token_ids.copy()
        restored[document.predicted] = document.targets
        mask = material.tokenizer.mask_id
        assert restored.tolist() == [0, *range(100, 112), 2, 2, *[mask] * 6, 2]
        assert document.context_length == len(restored) == 22
        assert document.position_ids.tolist() == list(range(2, 24))
        assert document.language.tolist() == [*asking.language[:14], *[asking.language[-1]] * 8]
        # Slots stand where the placeholders stood, in their order.
        assert document.position_ids[document.slots].tolist() == asking.position_ids[14:].tolist()
        # Pseudo tokens and special tokens are never hidden and never predicted.
        assert set(document.predicted) <= set(range(1, 13)) and len(document.predicted) > 0


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75, 1.0, 2.0])
@pytest.mark.parametrize("maximum", [8, 9, 17, 64])
def test_the_planners_room_is_exactly_what_the_document_takes(store, material, ratio, maximum):
    config = BackTranslationConfig(pseudo_ratio=ratio)
    lengths = np.arange(maximum + 5)
    rooms = room_of_text_and_pseudo([lengths], maximum, ("de",), config)
    for length, room in zip(lengths.tolist(), rooms.tolist(), strict=True):
        example = made_of(
            make_btmlm,
            [segment(store, length)],
            draw(length),
            material._replace(maximum_tokens=maximum),
            config,
        ).example
        assert example.tokens == room <= maximum
        (document,), (asking,) = example.documents, example.generation
        kept = len(document.token_ids) - len(document.slots) - 4
        assert len(document.slots) == len(asking.predicted) == max(1, round(ratio * kept))
        assert kept == length or kept + 1 + max(1, round(ratio * (kept + 1))) + 4 > maximum  # not one too few


def test_counts_round_and_are_at_least_one():
    assert pseudo_count(np.array([0, 1, 2, 3, 5, 10]), 0.3).tolist() == [1, 1, 1, 1, 2, 3]
    assert fitted_length(np.array([3, 100]), 0.5, 64).tolist() == [3, 40]


def test_target_languages_follow_the_tokens_of_bilingual_text_to_the_temperatures_power(store, material):
    tokens = np.zeros(len(store.languages))
    rows = store.corpora["rows"]
    np.add.at(tokens, rows.segment_language, rows.segment_lengths)
    wanted = tokens**0.3
    np.testing.assert_allclose(material.bilingual, wanted / wanted.sum())
    source = store.languages.index("de")
    chances = np.random.default_rng(7).random(20_000)
    drawn = target_languages(np.full(20_000, source), material, chances)
    shares = np.bincount(drawn, minlength=len(tokens)) / len(drawn)
    wanted[source] = 0
    assert shares[source] == 0
    np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=0.01)
    steeper = bilingual_shares(store, SamplingConfig(language_temperature=1.0))
    np.testing.assert_allclose(steeper, tokens / tokens.sum())


def test_a_record_whose_language_alone_has_bilingual_text_gives_no_example(store, material):
    alone = np.zeros(len(store.languages))
    alone[store.languages.index("de")] = 1.0
    config = BackTranslationConfig()
    assert (
        made_of(make_btmlm, [segment(store)], draw(0), material._replace(bilingual=alone), config).example
        is None
    )


def test_every_draw_has_its_own_key(store, material):
    def facts(record, epoch=0):
        example = made_of(
            make_btmlm, [segment(store)], draw(record, epoch), material, BackTranslationConfig()
        ).example
        (document,), (asking,) = example.documents, example.generation
        return asking.draws.tolist(), int(asking.language[-1]), document.predicted.tolist()

    assert facts(3) == facts(3)
    others = [facts(3, 1), *(facts(record) for record in range(4, 20))]
    assert all(other[0] != facts(3)[0] for other in others)
    assert len({other[1] for other in others}) > 5 and len({tuple(other[2]) for other in others}) > 5


def test_streams_stay_by_the_language_of_the_text(store):
    streams = streams_of(store, TasksConfig(btmlm={}), SAMPLING, None)
    assert [s.name for s in streams] == [
        s.name.replace("mmlm", "btmlm") for s in streams_of(store, TasksConfig(mmlm={}), SAMPLING, None)
    ]


def test_a_store_without_parallel_text_is_refused(store):
    class Monolingual:
        corpora = {"sentences": store.corpora["sentences"]}
        languages = store.languages

    with pytest.raises(UserError, match="btmlm .* there is no parallel corpus"):
        streams_of(Monolingual(), TasksConfig(btmlm={}), SAMPLING, None)
