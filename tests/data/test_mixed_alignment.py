"""Invariants of mixed-language alignment: which generator makes what, on which side, in which room."""

import numpy as np
import pytest

from data.lexicon import Lexicon
from data.mixed_forms import make_mixed_alignment
from data.recipe import UserError
from data.sampling import bilingual_shares, streams_of
from data.settings.mixed_alignment import MixedAlignmentConfig
from data.settings.tasks import TasksConfig
from data.task import Draw
from data.texts import TextSegment
from tests.data.drawn import corpus_of, draw, each, made_of, pair, segments_of
from tests.packed import pack


def test_mixed_text_stands_on_either_side_and_fits_its_room(world):
    _, store, material = world
    segment = pair(store)[1]
    sides = set()
    for record in range(40):
        made = made_of(
            make_mixed_alignment,
            [segment],
            draw(record, room=2 * len(segment.ids) + 8),
            material,
            MixedAlignmentConfig(),
        )
        (mixture,) = made.mixed
        assert mixture.generator == "dictionary" and mixture.languages >= 2 and mixture.replaced >= 1
        original = [0, *segment.ids, 2]
        where = [d.token_ids.tolist() == original for d in made.example.documents]
        assert sum(where) == 1
        sides.add(where[0])
        assert made.example.tokens <= 2 * len(segment.ids) + 8
    assert sides == {True, False}


def test_of_a_text_that_was_cut_only_the_kept_part_is_mixed(world):
    _, store, material = world
    segment = pair(store)[1]
    text = " ".join([segment.text, "café ①"] * 8)  # ids and characters do not go in step
    maximum = len(segment.ids) + 2
    (ids,) = material.tokenizer.encode([text])
    kept = material.tokenizer.covered(text, len(segment.ids))
    assert text.startswith(kept) and len(kept) <= len(segment.text) + 1
    cut = segment._replace(ids=ids[: maximum - 2], text=text)  # as the store hands it over
    for record in range(20):
        small = material._replace(maximum_tokens=maximum)
        made = made_of(make_mixed_alignment, [cut], draw(record, room=1000), small, MixedAlignmentConfig())
        assert made.mixed[0].words <= material.lexicon.words("en", segment.text).units
        assert not made.mixed[0].cut and all(d.token_ids[-1] == 2 for d in made.example.documents)


GENERATORS = ("dictionary", "phrase", "sentence")


TWO_SENTENCES = {
    "en": "The lock is open. Set the user name.",
    "de": "Das Schloss ist offen. Setzen Sie den Namen.",
}


def row_of(material, texts):
    """Segments of one row, the first language of ``texts`` before the others."""
    ids = material.tokenizer.encode(list(texts.values()))
    numbers = [material.languages.index(language) for language in texts]
    return [
        TextSegment(number, i, text, 7) for number, i, text in zip(numbers, ids, texts.values(), strict=True)
    ]


def shown(material, document):
    return material.tokenizer.decode(document.token_ids[1:-1])


def test_each_generator_makes_its_own_kind_of_mixed_text(world):
    _, _, material = world
    lexicon = Lexicon([("de", "lock", "Riegel"), ("de", "set the user", "Lege den Benutzer", "phrase")])
    material = material._replace(lexicon=lexicon)
    segments = row_of(material, TWO_SENTENCES)
    expected = {
        "dictionary": {"The Riegel is open. Set the user name."},
        "phrase": {"The lock is open. Lege den Benutzer name."},
        "sentence": {
            "Das Schloss ist offen. Set the user name.",
            "The lock is open. Setzen Sie den Namen.",
        },
    }
    for name in GENERATORS:
        config = MixedAlignmentConfig(generators={name: 1})
        found = set()
        for record in range(12):
            made = made_of(make_mixed_alignment, segments, draw(record), material, config)
            assert [side.generator for side in made.mixed] == [name] and made.mixed[0].languages == 2
            found |= {shown(material, document) for document in made.example.documents}
        assert found == expected[name] | {TWO_SENTENCES["en"]}


def test_the_drawn_generator_makes_way_for_one_that_can_and_weights_decide_where_all_can(world):
    _, _, material = world
    all_three = MixedAlignmentConfig(generators={"dictionary": 1, "phrase": 2, "sentence": 1})
    entries = [("de", "lock", "Riegel"), ("de", "set the user", "Lege den Benutzer", "phrase")]
    for known, with_row, expected in (
        (entries, True, {"dictionary": 0.25, "phrase": 0.5, "sentence": 0.25}),
        (entries[:1], True, {"dictionary": 0.5, "sentence": 0.5}),
        (entries, False, {"dictionary": 1 / 3, "phrase": 2 / 3}),
        (entries[:1], False, {"dictionary": 1.0}),
        ([("de", "unknown", "unbekannt")], True, {"sentence": 1.0}),
        ([("de", "unknown", "unbekannt")], False, {}),
    ):
        one = material._replace(lexicon=Lexicon(known))
        segments = row_of(one, TWO_SENTENCES)[: 2 if with_row else 1]
        draws = [draw(record) for record in range(300)]
        made = each(make_mixed_alignment, [segments] * 300, draws, one, all_three)
        names = [side.generator for m in made for side in m.mixed]
        assert len(names) == (300 if expected else 0) and all(
            (m.example is None) == (not expected) for m in made
        )
        shares = {name: names.count(name) / 300 for name in set(names)}
        assert shares == pytest.approx(expected, abs=0.09)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_pairs_compares_two_mixed_forms_within_their_room(world, share):
    recipe, store, material = world
    tasks = TasksConfig(mixed_alignment={"both_mixed": share, "generators": {"dictionary": 2, "sentence": 1}})
    streams = {s.name: s for s in streams_of(store, tasks, recipe.sampling, material.lexicon)}
    corpora, both, pairs = list(store.corpora.values()), 0, 0
    for stream in (
        streams["mixed_alignment/en"],
        streams["mixed_alignment/ja"],
        streams["mixed_alignment/de"],
    ):
        records = np.arange(min(len(stream), 40))
        for record, room in zip(records.tolist(), stream.room(records, 1, 1, 64).tolist(), strict=True):
            corpus = corpora[corpus_of(stream, record)]
            (number,) = segments_of(stream, record, 1)
            segment = TextSegment(
                int(corpus.segment_language[number]), corpus.ids(number), corpus.text(number), 0
            )
            made = made_of(
                make_mixed_alignment,
                [segment],
                Draw(1, 0, stream.name, record, 1, room),
                material,
                tasks.mixed_alignment,
            )
            if made.example is None:
                continue
            assert made.example.tokens <= room and made.example.pairs == [(0, 1)]
            assert all(side.languages >= 2 for side in made.mixed)
            one, other = (d.token_ids.tolist() for d in made.example.documents)
            original = [0, *segment.ids, 2]
            assert one != other and [one, other].count(original) == 2 - len(made.mixed)
            pairs, both = pairs + 1, both + (len(made.mixed) == 2)
    assert pairs > 60
    # A text of one translatable word has few mixed forms, and two that are the same are not compared.
    assert both / pairs == pytest.approx(share, abs=0.12 if share else 0) or share == 1 and both / pairs > 0.7


def test_a_language_without_word_list_is_mixed_where_translations_are(world):
    recipe, store, material = world
    lexicon = Lexicon([("de", "lock", "Schloss")])
    settings = {"dictionary": 1, "sentence": 1}
    tasks = TasksConfig(mixed_alignment={"generators": settings})
    streams = {s.name: s for s in streams_of(store, tasks, recipe.sampling, lexicon)}
    names, rows = list(store.corpora), store.corpora["rows"]
    assert {f"mixed_alignment/{language}" for language in ("en", "de", "fr", "ja")} <= set(streams)
    assert [part.corpus for part in streams["mixed_alignment/fr"].parts] == [names.index("rows")]
    assert len({part.corpus for part in streams["mixed_alignment/de"].parts}) == 2
    only = TasksConfig(mixed_alignment={})
    listed = {s.name for s in streams_of(store, only, recipe.sampling, lexicon)}
    assert listed == {"mixed_alignment/de", "mixed_alignment/en"}
    assert rows.kind == "parallel"


@pytest.mark.parametrize(
    ("settings", "entries", "message"),
    [
        ({}, None, "needs word translations: name a file under 'lexicons'"),
        ({"generators": {"phrase": 1}}, [("de", "cat", "Katze")], "no lexicon holds a phrase: induce one"),
        ({"generators": {"sentence": 1}}, None, None),
        ({"generators": {"pseudo_tokens": 1}}, None, None),
    ],
)
def test_a_generator_that_has_nothing_to_read_is_said_before_the_run(world, settings, entries, message):
    recipe, store, _ = world
    lexicon = None if entries is None else Lexicon(entries)
    tasks = TasksConfig(mixed_alignment=settings)
    if message is None:
        assert streams_of(store, tasks, recipe.sampling, lexicon)
    else:
        with pytest.raises(UserError, match=message):
            streams_of(store, tasks, recipe.sampling, lexicon)


@pytest.mark.parametrize("both", [0.0, 1.0])
def test_spans_of_pseudo_tokens_are_written_in_one_other_language_at_the_places_of_a_translation(world, both):
    recipe, store, material = world
    material = material._replace(lexicon=None, bilingual=bilingual_shares(store, recipe.sampling))
    config = MixedAlignmentConfig(generators={"pseudo_tokens": 1}, both_mixed=both, span_rate=0.5)
    segment, mask = pair(store)[1], material.tokenizer.mask_id
    count, sides, targets = len(segment.ids), set(), set()
    for record in range(40):
        made = made_of(make_mixed_alignment, [segment], draw(record, room=200), material, config)
        example = made.example
        with_slots = [d for d in example.documents if len(d.slots)]
        assert len(with_slots) == len(example.generation) == len(made.mixed) == (2 if both else 1)
        for document, asking, how in zip(with_slots, example.generation, made.mixed, strict=True):
            spans = document.slots - 1
            assert how == ("pseudo_tokens", 0, count, count, 2, False)  # none before they are written
            assert len(spans) == round(count / 2) and (document.token_ids[document.slots] == mask).all()
            restored = document.token_ids.copy()
            restored[document.slots] = segment.ids[spans]
            assert restored.tolist() == [0, *segment.ids, 2]
            # The text as a whole, then placeholders at the places of those tokens on the other side of a pair.
            assert asking.token_ids.tolist() == [0, *segment.ids, 2, *[mask] * len(spans)]
            assert asking.position_ids[asking.context_length :].tolist() == (2 + count + 3 + spans).tolist()
            target = int(asking.language[-1])
            assert (document.language[document.slots] == target).all() and target != segment.language
            assert set(np.delete(document.language, document.slots)) == {segment.language}
            assert len(asking.draws) == len(asking.predicted) == len(spans)
            targets.add(target)
        sides.add(bool(len(example.documents[0].slots)))
        arrays = pack([example], 512, material.tokenizer.pad_id)  # generation and slots belong together
        assert len(arrays["slots"]) == sum(len(d.slots) for d in with_slots)
        assert (arrays["slots"] < arrays["sentence_tokens"]).all()
    assert sides == ({True} if both else {True, False}) and len(targets) > 3


def test_no_span_stands_where_the_longest_document_has_no_place_for_it(world):
    recipe, store, material = world
    material = material._replace(bilingual=bilingual_shares(store, recipe.sampling))
    config = MixedAlignmentConfig(generators={"pseudo_tokens": 1}, span_rate=0.9)
    segment = pair(store)[1]
    for count in (1, 2, 3, 20, 31, 45, 59, 60, 62):
        ids = np.resize(segment.ids, count)
        made = made_of(
            make_mixed_alignment,
            [segment._replace(ids=ids, text=material.tokenizer.decode(ids))],
            draw(count),
            material,
            config,
        )
        if count in (1, 60, 62):
            assert made.example is None
            continue
        (asking,) = made.example.generation
        assert asking.position_ids.max() < 2 + material.maximum_tokens
        assert 1 <= len(asking.predicted) < count


def test_covered_text_has_the_ids_that_were_kept(world):
    _, store, material = world
    corpus, whole = store.corpora["rows"], 0
    for s in range(0, corpus.segments, 37):
        text, ids = corpus.text(s), corpus.ids(s)
        if len(ids) < 8 or len(ids) == 62:
            continue
        assert material.tokenizer.covered(text, len(ids)) == text
        (again,) = material.tokenizer.encode([material.tokenizer.covered(text, 6)])
        assert np.array_equal(again[:4], ids[:4])
        whole += np.array_equal(again, ids[:6])
    assert whole > 20


def test_a_mixed_text_that_the_room_cuts_is_counted_and_left_out_when_nothing_translated_remains(world):
    _, store, material = world
    segment = pair(store)[1]
    seen = set()
    for record in range(40):
        for room in range(len(segment.ids) + 5, 2 * len(segment.ids) + 20, 3):
            made = made_of(
                make_mixed_alignment, [segment], draw(record, room), material, MixedAlignmentConfig()
            )
            seen.add((made.example is None, any(side.cut for side in made.mixed)))
            if made.example is None:
                continue
            (mixed,) = [
                d.token_ids[1:-1]
                for d in made.example.documents
                if d.token_ids.tolist() != [0, *segment.ids, 2]
            ]
            assert mixed.tolist() != segment.ids[: len(mixed)].tolist()
            free = made_of(
                make_mixed_alignment, [segment], draw(record, 1000), material, MixedAlignmentConfig()
            )
            assert made.mixed[0].cut == (made.example.tokens < free.example.tokens)
    assert seen == {(True, False), (False, True), (False, False)}
