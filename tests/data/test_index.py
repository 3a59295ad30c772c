"""Lists of segments: those that looking at every row gives, whether a rule, in memory or in a file; made once."""

import json
from itertools import combinations

import numpy as np
import pytest

import data.index
from data.index import Index, Listed, Rule
from data.recipe import UserError
from data.sampling import streams_of


class Rows:
    """A corpus of rows of (language, tokens)."""

    def __init__(self, rows, name="rows"):
        flat = [text for row in rows for text in row]
        self.name, self.records, self.segments = name, len(rows), len(flat)
        self.record_starts = np.cumsum([0, *map(len, rows)])
        self.segment_language = np.array([language for language, _ in flat], np.uint16)
        self.segment_lengths = np.array([length for _, length in flat], np.int32)


class Store:
    languages = ("de", "en", "fr")

    def __init__(self, folder, fingerprint="one"):
        self.folder, self.fingerprint = folder, fingerprint


def mixed_rows(seed=0, count=200):
    random = np.random.default_rng(seed)
    return [
        [(int(n), int(random.integers(1, 50))) for n in random.permutation(3)[: random.integers(1, 4)]]
        for _ in range(count)
    ]


BITEXT = [[(0, 5), (1, 7)]] * 100


def by_looking(rows):
    """(texts, pairs) as plain lists: languages -> (sides, tokens)."""
    texts, pairs, segment = {}, {}, 0
    for row in rows:
        numbered = [(language, segment + n, length) for n, (language, length) in enumerate(row)]
        segment += len(row)
        for language, number, length in numbered:
            sides, tokens = texts.get((language,), ([], 0))
            texts[(language,)] = [*sides, (number,)], tokens + length
        for one, other in combinations(sorted(numbered), 2):
            sides, tokens = pairs.get((one[0], other[0]), ([], 0))
            pairs[one[0], other[0]] = [*sides, (one[1], other[1])], tokens + one[2] + other[2]
    return texts, pairs


def plain(lists):
    return {
        of: (
            list(zip(*(np.asarray(side[np.arange(len(side))]).tolist() for side in sides), strict=True)),
            tokens,
        )
        for of, (sides, tokens) in lists.items()
    }


@pytest.mark.parametrize("rows", [BITEXT, mixed_rows(), BITEXT + mixed_rows(1), [[(2, 3)]], [[(2, 3)]] * 9])
@pytest.mark.parametrize("small", [0, 1 << 20], ids=["mapped", "in memory"])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_lists_are_those_that_looking_at_every_row_gives(tmp_path, monkeypatch, rows, small, chunk):
    monkeypatch.setattr(data.index, "_SMALL", small)
    monkeypatch.setattr(data.index, "_CHUNK", chunk)
    index, corpus = Index(Store(tmp_path / "store")), Rows(rows)
    texts, pairs = by_looking(rows)
    for _ in range(2):  # made, and found
        assert plain(index.texts(corpus)) == texts
        assert plain(index.pairs(corpus, "all")) == pairs
        assert plain(index.pairs(corpus, "en")) == {of: found for of, found in pairs.items() if 1 in of}
    assert (tmp_path / "store.index").exists() == (small == 0)


def test_triplets_are_rows_by_languages_with_the_tokens_that_are_read(tmp_path):
    rows = [[(0, 1), (1, 2), (1, 4)], [(1, 8), (0, 16), (0, 32), (0, 64)], [(1, 128), (1, 256), (0, 512)]]
    index = Index(Store(tmp_path / "store"))
    assert plain(index.triplets(Rows(rows), 4)) == {(0, 1): ([(0,), (1,)], 127), (1,): ([(2,)], 896)}
    assert plain(index.triplets(Rows(rows), 1)) == {(0, 1): ([(0,), (1,)], 63), (1,): ([(2,)], 896)}


def test_a_bitext_and_a_corpus_of_one_language_are_rules_and_take_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(data.index, "_SMALL", 0)
    index = Index(Store(tmp_path / "store"))
    assert index.pairs(Rows(BITEXT), "all") == {(0, 1): Listed((Rule(0, 2, 100), Rule(1, 2, 100)), 1200)}
    assert index.texts(Rows([[(2, 3)]] * 9, "mono")) == {(2,): Listed((Rule(0, 1, 9),), 27)}
    assert {path.name for path in (tmp_path / "store.index").glob("*/*")} == {"lists.json"}


def test_a_list_is_made_once_and_anew_for_another_store_or_when_it_was_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(data.index, "_SMALL", 0)
    corpus = Rows(mixed_rows())
    Index(Store(tmp_path / "store")).texts(corpus)

    def never(chunk):
        raise AssertionError("it is there")

    looked = data.index._texts_of
    monkeypatch.setattr(data.index, "_texts_of", never)
    Index(Store(tmp_path / "store")).texts(corpus)
    with pytest.raises(AssertionError, match="it is there"):
        Index(Store(tmp_path / "store", "other")).texts(corpus)
    monkeypatch.setattr(data.index, "_texts_of", looked)
    lists = tmp_path / "store.index/rows.texts/lists.json"
    for spoil in (lambda: lists.unlink(missing_ok=True), lambda: lists.write_text('{"store":')):
        spoil()
        assert plain(Index(Store(tmp_path / "store")).texts(corpus)) == by_looking(mixed_rows())[0]
        assert json.loads(lists.read_text())["store"] == "one"


def test_a_place_that_can_not_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data.index, "_SMALL", 0)
    (tmp_path / "store.index").write_text("a file")
    with pytest.raises(UserError, match="store.index: can not be written .*File exists"):
        Index(Store(tmp_path / "store")).texts(Rows(BITEXT))


def test_streams_read_the_same_whether_lists_are_mapped_or_in_memory(world, tmp_path, monkeypatch):
    recipe, store, material = world
    in_memory = streams_of(store, recipe.tasks, recipe.sampling, material.lexicon)
    monkeypatch.setattr(data.index, "_SMALL", 0)
    monkeypatch.setattr(store, "folder", tmp_path / "store")  # the lists lie beside it
    mapped = streams_of(store, recipe.tasks, recipe.sampling, material.lexicon)
    assert (tmp_path / "store.index").is_dir()
    assert [stream.name for stream in mapped] == [stream.name for stream in in_memory]
    for one, other in zip(mapped, in_memory, strict=True):
        records = np.arange(len(one))
        assert one.tokens == other.tokens and one.caps == other.caps
        for mine, its in zip(one.segments_of(records, 1, 1), other.segments_of(records, 1, 1), strict=True):
            assert np.array_equal(mine, its)
        assert np.array_equal(one.room(records, 1, 1, 64), other.room(records, 1, 1, 64))
