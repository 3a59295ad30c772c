"""Invariants: what each task's documents look like, token for token, on real records."""

import numpy as np
import pytest

from data.sampling import streams_of
from data.settings.task import CrossAttentionMaskedConfig, MaskedConfig, TaskConfig
from data.settings.tasks import LOSSES, TasksConfig
from data.shares import Shares
from data.task import Draw
from data.tasks import TASKS, make_camlm, make_mmlm, make_tlm, make_translation_alignment
from data.texts import TextSegment
from tests.data.drawn import corpus_of, draw, each, made_of, pair, segments_of


def test_settings_and_table_hold_the_same_tasks_in_the_same_order():
    assert list(TASKS) == list(LOSSES)
    assert TasksConfig.model_fields.keys() - {"in_batch_margin"} == LOSSES.keys()


def test_mmlm_predicts_what_it_hides(world):
    _, store, material = world
    segment = pair(store)[0]
    (document,) = made_of(make_mmlm, [segment], draw(0), material, MaskedConfig()).example.documents
    assert document.token_ids[0] == 0 and document.token_ids[-1] == 2
    assert document.context_length == len(document.token_ids) == len(segment.ids) + 2
    restored = document.token_ids.copy()
    restored[document.predicted] = document.targets
    assert np.array_equal(restored[1:-1], segment.ids)
    assert document.position_ids.tolist() == list(range(2, len(restored) + 2))


def test_tlm_has_the_pair_layout_and_predicts_ordinary_tokens_of_both_sides(world):
    _, store, material = world
    segments = pair(store)
    orders, sides = set(), set()
    for record in range(60):
        (document,) = made_of(
            make_tlm, segments, draw(record), material, MaskedConfig(mask_rate=0.3)
        ).example.documents
        restored = document.token_ids.copy()
        restored[document.predicted] = document.targets
        first, second = segments if document.language[0] == segments[0].language else segments[::-1]
        orders.add(first.language)
        n = len(first.ids)
        assert restored.tolist() == [0, *first.ids, 2, 2, *second.ids, 2]
        assert document.language.tolist() == [first.language] * (n + 2) + [second.language] * (
            len(second.ids) + 2
        )
        assert not np.isin(document.predicted, [0, n + 1, n + 2, len(restored) - 1]).any()
        sides |= {bool(p > n) for p in document.predicted}
    assert len(orders) == 2 and len(sides) == 2


def test_camlm_reads_one_side_from_the_unmasked_tokens_of_the_other(world):
    _, store, material = world
    segments = pair(store)
    mask = material.tokenizer.mask_id
    for record in range(30):
        made = made_of(make_camlm, segments, draw(record), material, CrossAttentionMaskedConfig())
        one, other = made.example.documents
        assert len(one.token_ids) + len(other.token_ids) == sum(len(s.ids) + 2 for s in segments)
        whole = {}
        for document, partner in ((one, other), (other, one)):
            context = document.context_length
            assert (document.token_ids[context:] == mask).all() and mask not in document.token_ids[:context]
            assert document.predicted.tolist() == list(range(context, len(document.token_ids)))
            # The readers' places are those that the partner's context left out, and of the same language.
            partner_context = partner.position_ids[: partner.context_length]
            readers = document.position_ids[context:]
            assert not set(readers) & set(partner_context)
            places = np.concatenate([readers, partner_context])
            assert sorted(places) == list(range(min(places), max(places) + 1))
            assert set(document.language[context:]) == set(partner.language[: partner.context_length])
            whole |= dict(zip(document.position_ids[:context], document.token_ids[:context], strict=True))
            whole |= dict(zip(readers, document.targets, strict=True))
        first, second = segments if one.language[-1] == segments[0].language else segments[::-1]
        assert [whole[p] for p in sorted(whole)] == [0, *first.ids, 2, 2, *second.ids, 2]


def test_a_pair_that_is_too_long_loses_the_longer_sides_end_first(world):
    _, store, material = world
    short, long = pair(store)[0], pair(store)[1]
    short = short._replace(ids=short.ids[:5])
    long = long._replace(ids=np.resize(long.ids, 500))
    (document,) = made_of(make_tlm, [short, long], draw(0), material, MaskedConfig()).example.documents
    assert len(document.token_ids) == 64
    assert (document.language == short.language).sum() == 7
    both = [s._replace(ids=np.resize(s.ids, 500)) for s in (short, long)]
    (document,) = made_of(make_tlm, both, draw(0), material, MaskedConfig()).example.documents
    assert np.bincount(document.language)[[short.language, long.language]].tolist() == [32, 32]


def test_alignment_compares_the_two_texts_and_carries_their_group(world):
    _, store, material = world
    segments = pair(store)
    example = made_of(make_translation_alignment, segments, draw(0), material, TaskConfig()).example
    assert example.pairs == [(0, 1)] and example.group == 7
    assert {d.language for d in example.documents} == {s.language for s in segments}


def test_further_texts_of_a_row_are_distinct_fit_their_room_and_are_all_compared(world):
    recipe, store, material = world
    tasks = TasksConfig(translation_alignment={"texts": 5})
    streams = streams_of(store, tasks, recipe.sampling, None)
    config, corpora = tasks.translation_alignment, list(store.corpora.values())
    sizes = set()
    for number, stream in enumerate(streams[::20]):
        for epoch in (0, 1):
            records = np.arange(min(len(stream), 10))
            for record, room in zip(records, stream.room(records, epoch, 1, 64), strict=True):
                corpus = corpora[corpus_of(stream, record)]
                found = segments_of(stream, record, epoch)
                assert found[:2] == [side[record] for side in stream.parts[0].sides]
                assert len(set(found)) == len(found) <= 5
                assert len({corpus.segment_record[s] for s in found}) == 1
                segments = [TextSegment(int(corpus.segment_language[s]), corpus.ids(s), "", 7) for s in found]
                draw = Draw(1, number, stream.name, int(record), epoch, int(room))
                example = made_of(make_translation_alignment, segments, draw, material, config).example
                assert example.tokens == room
                assert len(example.pairs) == len(found) * (len(found) - 1) // 2
                sizes.add(len(found))
    assert 5 in sizes
    drawn = [tuple(segments_of(streams[0], 0, epoch)[2:]) for epoch in range(8)]
    assert len(set(drawn)) > 4


def test_the_same_draw_makes_the_same_example_and_another_epoch_another(world):
    _, store, material = world
    segments = pair(store)
    again = [
        made_of(make_camlm, segments, draw(4), material, CrossAttentionMaskedConfig()).example
        for _ in range(2)
    ]
    for one, other in zip(again[0].documents, again[1].documents, strict=True):
        assert np.array_equal(one.token_ids, other.token_ids) and np.array_equal(one.targets, other.targets)
    later = made_of(
        make_camlm, segments, draw(4)._replace(epoch=1), material, CrossAttentionMaskedConfig()
    ).example
    assert later.documents[0].targets.tolist() != again[0].documents[0].targets.tolist()


def test_no_example_needs_more_than_the_room_that_is_set_aside(world):
    recipe, store, material = world
    streams = streams_of(store, recipe.tasks, recipe.sampling, material.lexicon)
    corpora = list(store.corpora.values())
    for number, stream in enumerate(streams[::9]):
        records = np.arange(min(len(stream), 20))
        rooms = stream.room(records, 0, 1, 64)
        texts, draws = [], []
        for record, room in zip(records.tolist(), rooms.tolist(), strict=True):
            corpus = corpora[corpus_of(stream, record)]
            texts.append(
                [
                    TextSegment(int(corpus.segment_language[s]), corpus.ids(s), corpus.text(s), 0)
                    for s in segments_of(stream, record)
                ]
            )
            draws.append(Draw(1, number, stream.name, record, 0, room))
        config = recipe.tasks.enabled()[stream.task.name]
        found = each(stream.task.make, texts, draws, material, config)
        for made, room in zip(found, rooms.tolist(), strict=True):
            assert made.example is None or made.example.tokens <= room
            if stream.task.name != "mixed_alignment":
                assert made.example.tokens == room


def test_streams_hold_every_record_of_the_training_corpora_and_none_that_is_held_out(world):
    recipe, store, material = world
    streams = {s.name: s for s in streams_of(store, recipe.tasks, recipe.sampling, material.lexicon)}
    rows, sentences = store.corpora["rows"], store.corpora["sentences"]
    german = store.languages.index("de")
    assert len(streams["mmlm/de"]) == (sentences.segment_language == german).sum()
    both = set(rows.segment_record[rows.segment_language == german])
    both &= set(rows.segment_record[rows.segment_language == store.languages.index("en")])
    assert len(streams["tlm/de-en"]) == len(both)
    held_out = list(store.corpora).index("test")
    assert held_out not in {part.corpus for s in streams.values() for part in s.parts}
    assert streams["tlm/de-en"].languages == ("de", "en") and streams["mmlm/de"].languages == ("de",)
    texts = sum(len(s) for s in streams.values() if s.task.name == "mixed_alignment")
    assert texts == len(rows.segment_language) + len(sentences.segment_language)


def test_shares_split_sides_evenly_then_by_weight_then_by_temperature(world):
    recipe, store, material = world
    streams = streams_of(store, recipe.tasks, recipe.sampling, material.lexicon)
    mix = Shares(streams, recipe.tasks, recipe.sampling)
    shares = mix(0, np.zeros(len(streams), bool), {}).shares
    of_task = {name: shares[[s.task.name == name for s in streams]].sum() for name in recipe.tasks.enabled()}
    assert shares.sum() == pytest.approx(1)
    assert of_task == pytest.approx(
        {
            "mmlm": 1 / 4,
            "tlm": 1 / 8,
            "camlm": 1 / 8,
            "translation_alignment": 1 / 4,
            "mixed_alignment": 1 / 4,
        }
    )
    members = [i for i, s in enumerate(streams) if s.task.name == "mmlm"]
    corpus = store.corpora["sentences"]
    tokens = np.bincount(corpus.segment_language, corpus.segment_lengths)
    tokens = np.array([tokens[store.languages.index(streams[i].languages[0])] for i in members])
    assert shares[members] / shares[members].sum() == pytest.approx(tokens**0.3 / (tokens**0.3).sum())
