"""Token store: what was written is read back, in place, and damage is named."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from data.config import DataConfig
from data.encode import number_of
from data.preparation import prepare
from data.recipe import UserError
from data.store import TokenStore
from data.tokenizer import Tokenizer


class Segment(NamedTuple):
    record: int
    language: str
    text: str


def written(path: str) -> list[Segment]:
    rows = [json.loads(line) for line in Path(path).read_bytes().splitlines()]
    texts = [row["t"].items() if "t" in row else [(row["lang"], row["text"])] for row in rows]
    return [Segment(record, *pair) for record, row in enumerate(texts) for pair in row]


@pytest.fixture
def damaged(small_store: TokenStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_store.folder, tmp_path / "damaged"))


def test_every_segment_is_read_back_with_language_record_ids_and_text(small_store: TokenStore) -> None:
    tokenizer = Tokenizer.open(small_store.tokenizer_folder)
    for name, corpus in small_store.corpora.items():
        segments = written(small_store.manifest["inputs"]["settings"]["corpora"][name]["path"])
        assert corpus.segments == len(segments) and corpus.records == segments[-1].record + 1
        assert corpus.segment_record.tolist() == [segment.record for segment in segments]
        expected = tokenizer.encode([segment.text for segment in segments])
        for number, (segment, ids) in enumerate(zip(segments, expected, strict=True)):
            assert corpus.language(number) == segment.language
            assert corpus.text(number) == segment.text.strip()
            assert corpus.ids(number).tolist() == ids[:62].tolist()
            assert corpus.segment_lengths[number] == len(corpus.ids(number))
        starts = [
            number
            for number, segment in enumerate(segments)
            if number == 0 or segments[number - 1][0] != segment[0]
        ]
        assert corpus.record_starts.tolist() == [*starts, len(segments)]


def test_types_and_flags_are_those_of_the_contract(small_store: TokenStore) -> None:
    assert small_store.languages == tuple(sorted(small_store.languages)) and len(small_store.languages) == 22
    assert [(c.kind, c.held_out) for c in small_store.corpora.values()] == [
        ("parallel", False),
        ("monolingual", False),
        ("parallel", True),
    ]
    corpus = small_store.corpora["rows"]
    assert corpus.segment_language.dtype == np.uint16 and corpus.segment_record.dtype == np.int64
    assert corpus.segment_lengths.dtype == np.int32 and corpus.segment_groups.dtype == np.uint64
    assert corpus.record_starts.dtype == np.int64 and corpus.ids(0).dtype == np.int32


def test_what_is_read_are_read_only_views_of_the_mapped_file(small_store: TokenStore) -> None:
    corpus = pickle.loads(pickle.dumps(small_store)).corpora["rows"]
    before = pa.total_allocated_bytes()
    first, last = corpus.ids(0), corpus.ids(corpus.segments - 1)
    tokens = corpus.entry["tokens"]
    assert last.ctypes.data + last.nbytes == first.ctypes.data + 4 * tokens
    columns = (
        corpus.segment_language,
        corpus.segment_record,
        corpus.segment_lengths,
        corpus.segment_groups,
        corpus.record_starts,
    )
    for array in (first, last, *(column[1:9] for column in columns), *map(np.asarray, columns)):
        assert not array.flags.owndata and not array.flags.writeable
    assert pa.total_allocated_bytes() - before < 4096  # the schema, not the columns


@pytest.mark.parametrize("name", ["segment_language", "segment_lengths", "segment_groups", "record_starts"])
def test_a_column_gives_what_an_array_would(small_store: TokenStore, name: str) -> None:
    corpus = pickle.loads(pickle.dumps(small_store)).corpora["rows"]
    column = getattr(corpus, name)
    truth = np.array(getattr(small_store.corpora["rows"], name).tolist(), column.dtype)
    size = len(truth)
    random = np.random.default_rng(1)
    assert len(column) == size and column.shape == truth.shape
    for place in (0, size - 1, -1, -size, np.int64(3)):
        assert column[place] == truth[place]
    for place in (size, -size - 1):
        with pytest.raises(IndexError):
            column[place]
    for key in (
        slice(2, 9), slice(None, -1), slice(5, 2), slice(9, 2, -2), slice(None, None, 3), [], [1, -1, 1],
        random.integers(-size, size, (4, 5)), truth > truth[size // 2],
    ):  # fmt: skip
        assert np.array_equal(column[key], truth[key])
    assert np.array_equal(column == truth[7], truth == truth[7]) and np.array_equal(2 + column, 2 + truth)
    assert np.array_equal(np.unique(column), np.unique(truth)) and list(column) == list(truth)


def test_equal_texts_and_translations_share_a_group(small_store: TokenStore) -> None:
    group_of: dict[str, int] = {}
    for corpus in small_store.corpora.values():
        for record in range(corpus.records):
            first, end = corpus.record_starts[record : record + 2]
            (group,) = set(corpus.segment_groups[first:end].tolist())
            for segment in range(first, end):
                assert group_of.setdefault(" ".join(corpus.text(segment).split()), group) == group
    assert number_of("a  b ") == number_of("a b") != number_of("A b")


def test_counts_of_the_manifest_add_up(small_store: TokenStore) -> None:
    for name, entry in small_store.manifest["corpora"].items():
        corpus = small_store.corpora[name]
        assert entry["read"] == entry["records"] + entry["rejected"]
        assert entry["segments"] == sum(row["segments"] for row in entry["languages"].values())
        assert entry["tokens"] == sum(row["tokens"] for row in entry["languages"].values())
        assert entry["tokens"] == int(np.sum(corpus.segment_lengths))
        for number, language in enumerate(small_store.languages):
            tokens = corpus.segment_lengths[corpus.segment_language == number].sum()
            assert entry["languages"].get(language, {"tokens": 0})["tokens"] == tokens


def test_texts_longer_than_the_limit_are_cut_and_counted(small_store: TokenStore) -> None:
    for corpus in small_store.corpora.values():
        assert np.max(corpus.segment_lengths) <= 62
    long = small_store.manifest["corpora"]["held_out"]["languages"]
    assert sum(row["truncated"] for row in long.values()) > 0


def test_scored_triplets_keep_their_scores(configure, tmp_path: Path) -> None:
    rows = [
        {"a": "one", "p": "two", "n": ["three", "four"], "s": [0.5, 0.25, -1]},
        {"a": "x", "p": "y", "n": "z", "s": [1, 0]},
    ]
    (tmp_path / "scored.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {"anchor": "a", "positive": "p", "negatives": "n", "scores": "s", "language": "en"}
    corpus = {"kind": "scored", "format": "jsonl", "path": str(tmp_path / "scored.jsonl"), **keys}
    stored = prepare(configure(corpora={"scored": corpus}), workers=1).corpora["scored"]
    assert stored.record_starts.tolist() == [0, 4, 7]
    np.testing.assert_array_equal(stored.segment_scores, np.float32([np.nan, 0.5, 0.25, -1, np.nan, 1, 0]))
    assert [stored.text(number) for number in range(4)] == ["one", "two", "three", "four"]


def test_a_store_travels_to_another_process_as_its_path(small_store: TokenStore) -> None:
    small_store.corpora["rows"].ids(0)  # maps the file
    packed = pickle.dumps(small_store)
    assert len(packed) < 20_000
    again = pickle.loads(packed)
    assert again.corpora["rows"].text(5) == small_store.corpora["rows"].text(5)
    assert (
        pickle.loads(pickle.dumps(small_store.corpora["rows"])).ids(5).tolist()
        == again.corpora["rows"].ids(5).tolist()
    )


def test_a_shortened_or_missing_file_is_named_at_open(damaged: Path) -> None:
    path = damaged / "rows.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="rows.arrow has [0-9]+ bytes, not [0-9]+: .*--rebuild"):
        TokenStore.open(damaged)
    path.unlink()
    with pytest.raises(UserError, match="rows.arrow is missing.*--rebuild"):
        TokenStore.open(damaged)


def test_a_changed_byte_is_found_and_named_by_verify(damaged: Path) -> None:
    store = TokenStore.open(damaged)
    store.verify()
    path = damaged / "sentences.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        TokenStore.open(damaged).verify()
    assert "sentences.arrow" in str(error.value) and "rows.arrow" not in str(error.value)


def test_the_digests_of_a_store_that_is_there_are_compared_where_that_is_quick_or_asked_for(
    configure: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    folder = prepare(config, workers=1).folder
    path = folder / "rows.arrow"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="rows.arrow: not the bytes that were written.*--rebuild"):
        prepare(config, workers=1)
    monkeypatch.setattr("data.preparation.VERIFIED_ALWAYS", 1000)
    prepare(config, workers=1)  # a large one: its sizes alone
    with pytest.raises(UserError, match="not the bytes that were written"):
        prepare(config, workers=1, verify=True)
    prepare(config, workers=1, rebuild=True)
    prepare(config, workers=1, verify=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "can not be read"),
        (b"[]", "not the manifest"),
        (b'{"format": "calque token store", "version": 0}', "version 0"),
        (None, "holds no token store; make one with: python -m data.prepare"),
    ],
)
def test_a_wrong_manifest_is_one_clear_message(damaged: Path, content: bytes | None, said: str) -> None:
    (damaged / "manifest.json").unlink()
    if content is not None:
        (damaged / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=said):
        TokenStore.open(damaged)


def test_a_manifest_changed_by_hand_is_refused(damaged: Path) -> None:
    path = damaged / "manifest.json"
    path.write_text(path.read_text().replace('"held_out": true', '"held_out": false'))
    with pytest.raises(UserError, match="changed after it was written"):
        TokenStore.open(damaged)


def test_the_fingerprint_follows_the_content(configure, small_store: TokenStore, tmp_path: Path) -> None:
    config: DataConfig = configure(maximum_tokens=64)
    same = prepare(config, workers=1)
    assert same.fingerprint == small_store.fingerprint  # another folder, a copied tokenizer: the same content
    shorter = prepare(
        config.model_copy(update={"maximum_tokens": 32, "store": str(tmp_path / "s")}), workers=1
    )
    assert shorter.fingerprint != same.fingerprint
