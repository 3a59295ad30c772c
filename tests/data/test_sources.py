"""Sources: read = kept + rejected on any bytes, rejects located, wrong recipes refused before the work."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.config import CorpusConfig
from data.recipe import UserError
from data.records import Record, ScoredTriplet, Sentence, TranslationPair
from data.sources import REASONS, Reject, read_corpus
from data.sources.checks import check_corpus

SEPARATORS = "a\u2028b\u0085c\x0cd\x1ce\rf"  # str.splitlines cuts all of them


def corpus(**settings: Any) -> CorpusConfig:
    return CorpusConfig.model_validate(settings)


def text_corpus(path: Path) -> CorpusConfig:
    return corpus(kind="monolingual", format="text", path=str(path), language="en")


def rows_corpus(path: Path, **settings: Any) -> CorpusConfig:
    return corpus(
        **{"kind": "parallel", "format": "jsonl", "path": str(path), "translations": "t", **settings}
    )


def read(
    config: CorpusConfig, maximum_characters: int = 100
) -> tuple[list[tuple[int, Record]], list[Reject]]:
    items = list(read_corpus(config, maximum_characters))
    rejects = [item for item in items if isinstance(item, Reject)]
    assert {reject.reason for reject in rejects} <= set(REASONS)
    return [(item[0].line, item[1]) for item in items if not isinstance(item, Reject)], rejects


def reasons(rejects: list[Reject]) -> dict[int, str]:
    return {reject.line: reject.reason for reject in rejects if reject.whole_record}


def test_lines_are_split_on_newline_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"\ufeffone\r\n{SEPARATORS}\r\r\nlast".encode())
    kept, rejects = read(text_corpus(path))
    assert [record for _, record in kept] == [Sentence("en", text) for text in ("one", SEPARATORS, "last")]
    assert not rejects


@pytest.mark.parametrize(
    ("content", "kept", "rejected"),
    [
        (b"", [], {}),
        (b"\n\n", [], {1: "empty", 2: "empty"}),
        (b"a\n\xff\xfa\nb\n", ["a", "b"], {2: "invalid_utf8"}),
        (b"a\xc0\xaf\n", [], {1: "invalid_utf8"}),  # an overlong slash
        (b"\xed\xa0\x80\na", ["a"], {1: "invalid_utf8"}),  # half of a surrogate pair
        (b"x" * 101 + b"\n" + b"x" * 100, ["x" * 100], {1: "too_long"}),
        (" \u3000\u2028\nb".encode(), ["b"], {1: "empty"}),
        (b"a\x00b\n", ["a\x00b"], {}),
    ],
)
def test_odd_lines_are_kept_or_rejected_with_their_line(
    tmp_path: Path, content: bytes, kept: list[str], rejected: dict[int, str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    records, rejects = read(text_corpus(path))
    assert [record.text for _, record in records if isinstance(record, Sentence)] == kept
    assert reasons(rejects) == rejected


def test_a_giant_line_is_rejected_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.lines.LONGEST_LINE", 64)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n" + b"x" * 1000 + b"\n" + b"y" * 63 + b"\nb\n" + b"z" * 64)
    records, rejects = read(text_corpus(path))
    assert [line for line, _ in records] == [1, 3, 4, 5]
    assert reasons(rejects) == {2: "too_long"}


def test_gzip_is_read_like_plain_text_and_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    packed = gzip.compress("".join(f"sentence {i}\n" for i in range(1000)).encode())
    path.write_bytes(packed)
    assert len(read(text_corpus(path))[0]) == 1000
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="a.txt.gz: damaged after line"):
        read(text_corpus(path))


def test_utf16_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello\n", encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16; convert it"):
        read(text_corpus(path))


def test_a_multi_way_row_keeps_its_good_texts_as_long_as_two_remain(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[Any] = [
        {"t": {"en": " a ", "de": "b", "fr": ""}},
        {"t": {"en": "a", "de": None, "fr": "c"}},
        {"t": {"en": "a", "de": 3}},
        {"t": {"en": "a"}},
        {"t": {"en": "a", "d e": "b", "fr": "c"}},
        {"t": ["a"]},
        {"u": {}},
        [],
        {"t": {"en": "\ud800", "de": "b"}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{torn\n\n")
    kept, rejects = read(rows_corpus(path))
    assert kept == [
        (1, TranslationPair((("en", "a"), ("de", "b")))),
        (2, TranslationPair((("en", "a"), ("fr", "c")))),
        (5, TranslationPair((("en", "a"), ("fr", "c")))),
    ]
    assert reasons(rejects) == {
        3: "unknown_kind_of_value",
        4: "fewer_than_two_languages",
        6: "unknown_kind_of_value",
        7: "missing_field",
        8: "bad_json",
        9: "invalid_utf8",
        10: "bad_json",
        11: "empty",
    }
    dropped = [reject for reject in rejects if not reject.whole_record]
    assert [(reject.line, reject.reason, reject.language) for reject in dropped] == [
        (1, "empty", "fr"),
        (5, "bad_language", "d e"),
    ]


def test_only_the_languages_that_the_recipe_names_are_read(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = [{"en": "a", "de": "b", "fr": "c"}, {"de": "b", "fr": "c"}, {"de": "b", "en": ""}]
    rows.write_text("\n".join(json.dumps({"t": each}) for each in texts))
    kept, rejects = read(rows_corpus(rows, languages=["en", "de"]))
    assert kept == [(1, TranslationPair((("en", "a"), ("de", "b"))))]
    assert reasons(rejects) == {2: "fewer_than_two_languages", 3: "empty"}
    assert len(rejects) == 2  # a text in another language is no reject of its own
    single = tmp_path / "single.tsv"
    single.write_text("hallo\tde\nbonjour\tfr\nhello\ten\n")
    columns = {"kind": "monolingual", "format": "tsv", "path": str(single), "columns": ["text", "language"]}
    kept, rejects = read(corpus(**columns, languages=["de", "en"]))
    assert kept == [(1, Sentence("de", "hallo")), (3, Sentence("en", "hello"))]
    assert reasons(rejects) == {2: "left_out_language"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ["en"]}, "'languages' leaves nothing"),
        ({"translations": None, "fields": {"en": "e", "de": "d"}, "languages": ["en", "de"]}, "'languages'"),
        ({"kind": "monolingual", "translations": None, "text": "t", "language": "en", "languages": ["en"]},
         "'languages' chooses among those of the rows"),
    ],
)  # fmt: skip
def test_languages_are_chosen_where_the_rows_name_them(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_corpus(Path("a.jsonl"), **settings)


def test_tsv_columns_are_languages_or_text_and_language(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\t9\nonly\na\t\t9\n\nx\ty\tz\tw\n")
    kept, rejects = read(corpus(kind="parallel", format="tsv", path=str(path), columns=["en", "de", "_"]))
    assert kept == [(1, TranslationPair((("en", "a"), ("de", "b"))))]
    assert reasons(rejects) == {2: "wrong_columns", 3: "empty", 4: "empty", 5: "wrong_columns"}
    path.write_text("hallo\tde\nhello\te n\n")
    kept, rejects = read(
        corpus(kind="monolingual", format="tsv", path=str(path), columns=["text", "language"])
    )
    assert kept == [(1, Sentence("de", "hallo"))]
    assert reasons(rejects) == {2: "bad_language"}


def test_parallel_text_files_go_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(f"one\n{SEPARATORS}\n\nfour\n".encode())
    (tmp_path / "a.de").write_bytes(b"eins\r\nzwei\r\ndrei\r\n\xff\r\n")
    paths = {"en": str(tmp_path / "a.en"), "de": str(tmp_path / "a.de")}
    kept, rejects = read(corpus(kind="parallel", format="text", paths=paths))
    assert kept == [
        (1, TranslationPair((("en", "one"), ("de", "eins")))),
        (2, TranslationPair((("en", SEPARATORS), ("de", "zwei")))),
    ]
    assert [(Path(reject.file).name, reject.line, reject.reason) for reject in rejects] == [
        ("a.en", 3, "empty"),
        ("a.de", 4, "invalid_utf8"),
    ]


def test_unequal_parallel_files_are_refused_with_both_counts(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"one\ntwo\nthree")
    (tmp_path / "a.de").write_bytes(b"eins\nzwei\n")
    paths = {"en": str(tmp_path / "a.en"), "de": str(tmp_path / "a.de")}
    with pytest.raises(UserError) as error:
        check_corpus(corpus(kind="parallel", format="text", paths=paths), "corpora.a")
    assert "a.en has 3 lines" in str(error.value) and "a.de has 2 lines" in str(error.value)


def test_scored_triplets_need_one_score_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"a": "x", "p": "y", "n": ["z", "w"], "s": [0.9, 0.1, 0]},
        {"a": "x", "p": "y", "n": "z", "s": [0.9, 0.1]},
        {"a": "x", "p": "y", "n": ["z"], "s": [0.9]},
        {"a": "x", "p": "y", "n": ["z"], "s": [0.9, "0.1"]},
        {"a": "x", "p": "y", "n": [], "s": [0.9]},
        {"a": "x", "p": "", "n": ["z"], "s": [0.9, 0.1]},
        {"a": "x", "p": "y", "s": [0.9, 0.1]},
        {"a": "x", "p": "y", "n": ["z"], "s": [0.9, float("nan")]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    keys = {"anchor": "a", "positive": "p", "negatives": "n", "scores": "s", "language": "en"}
    kept, rejects = read(corpus(kind="scored", format="jsonl", path=str(path), **keys))
    assert kept == [
        (1, ScoredTriplet("en", "x", "y", ("z", "w"), (0.9, 0.1, 0.0))),
        (2, ScoredTriplet("en", "x", "y", ("z",), (0.9, 0.1))),
    ]
    assert reasons(rejects) == {
        3: "wrong_scores",
        4: "unknown_kind_of_value",
        5: "wrong_scores",
        6: "empty",
        7: "missing_field",
        8: "wrong_scores",
    }


@pytest.mark.parametrize("form", ["folder", "folder with splits", "parquet"])
def test_hugging_face_data_sets_and_parquet(tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {
            "id": [1, 2, 3],
            "translation": [{"en": "a", "de": "b"}, {"en": "c", "de": None}, {"en": "d", "de": " "}],
        }
    )
    path, split = tmp_path / "set", {}
    if form == "parquet":
        rows.to_parquet(str(path))
    elif form == "folder":
        rows.save_to_disk(str(path))
    else:
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(path))
        split = {"split": "train"}
    config = rows_corpus(path, format="huggingface", translations="translation", **split)
    check_corpus(config, "corpora.a")
    kept, rejects = read(config)
    assert kept == [(1, TranslationPair((("en", "a"), ("de", "b"))))]
    assert reasons(rejects) == {2: "fewer_than_two_languages", 3: "empty"}
    wrong = rows_corpus(path, format="huggingface", translations="translations", **split)
    with pytest.raises(UserError, match="corpora.a.translations: .* did you mean 'translation'"):
        check_corpus(wrong, "corpora.a")
    if split:
        with pytest.raises(UserError, match="splits train, test; did you mean 'train'"):
            check_corpus(rows_corpus(path, format="huggingface", translations="t", split="trai"), "corpora.a")


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="neither Parquet .* nor a folder of datasets.save_to_disk"):
        check_corpus(rows_corpus(tmp_path / "set", format="huggingface"), "corpora.a")


def test_a_missing_file_names_the_key_and_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(
        UserError, match=r"corpora.news.path: there is no file .*did you mean .*train.jsonl\?"
    ):
        check_corpus(rows_corpus(tmp_path / "trian.jsonl"), "corpora.news")


def test_a_field_that_no_row_has_names_file_key_fields_and_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\n{"sentence": "a", "lang": "de"}\n')
    keys: dict[str, Any] = {"kind": "monolingual", "format": "jsonl", "path": str(path)}
    with pytest.raises(UserError) as error:
        check_corpus(corpus(**keys, text="sentense", language={"field": "language"}), "corpora.a")
    assert "corpora.a.text" in str(error.value) and "did you mean 'sentence'?" in str(error.value)
    assert "corpora.a.language.field" in str(error.value) and "it has id, lang, sentence" in str(error.value)
    check_corpus(corpus(**keys, text="sentence", language={"field": "lang"}), "corpora.a")


def test_a_wrong_number_of_columns_names_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\tc\n" * 3)
    with pytest.raises(UserError, match="2 columns are named .* have 3"):
        check_corpus(corpus(kind="parallel", format="tsv", path=str(path), columns=["en", "de"]), "corpora.a")


def test_read_is_kept_plus_rejected_on_damaged_real_text(tmp_path: Path) -> None:
    with gzip.open("data/corpora/demo/parallel_test.jsonl.gz") as file:
        content = bytearray(file.read())
    for position in range(0, len(content), 997):
        content[position] ^= 0x80
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    kept, rejects = read(rows_corpus(path), maximum_characters=200)
    lost = [reject for reject in rejects if reject.whole_record]
    assert len(kept) + len(lost) == content.count(b"\n")
    assert Counter([line for line, _ in kept] + [reject.line for reject in lost]).most_common(1)[0][1] == 1
    assert kept and lost


def write_shards(folder: Path, **texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, rows in texts.items():
        table = pa.table({"en": rows, "de": [f"{text} auf Deutsch" for text in rows], "id": range(len(rows))})
        pyarrow.parquet.write_table(table, folder / f"{name.replace('_', '-')}.parquet")


def shards_corpus(folder: Path, **settings: Any) -> CorpusConfig:
    fields = {"en": "en", "de": "de"}
    return corpus(kind="parallel", format="huggingface", path=str(folder), fields=fields, **settings)


def english(config: CorpusConfig) -> list[str]:
    check_corpus(config, "corpora.a")
    kept, rejects = read(config)
    assert not rejects
    return [record.texts[0][1] for _, record in kept if isinstance(record, TranslationPair)]


def test_a_folder_of_parquet_shards_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_shards(tmp_path, part_1=["c"], part_0=["a", "b"])
    assert english(shards_corpus(tmp_path)) == ["a", "b", "c"]
    with pytest.raises(UserError, match="no split 'train'; its files name no splits"):
        check_corpus(shards_corpus(tmp_path, split="train"), "corpora.a")
    pyarrow.parquet.write_table(pa.table({"en": ["d"]}), tmp_path / "part-2.parquet")
    with pytest.raises(UserError, match="part-2.parquet: has no field de, unlike .*part-0.parquet"):
        check_corpus(shards_corpus(tmp_path), "corpora.a")


@pytest.mark.parametrize("test", ["test_00000_of_00001", "test"])
def test_splits_of_parquet_shards_are_never_mixed(tmp_path: Path, test: str) -> None:
    write_shards(tmp_path, train_00000_of_00002=["a"], train_00001_of_00002=["b"])
    assert english(shards_corpus(tmp_path)) == ["a", "b"]
    write_shards(tmp_path, **{test: ["z"]})
    with pytest.raises(UserError, match="the key 'split' is needed; it has the splits test, train"):
        check_corpus(shards_corpus(tmp_path), "corpora.a")
    assert english(shards_corpus(tmp_path, split="train")) == ["a", "b"]
    assert english(shards_corpus(tmp_path, split="test")) == ["z"]


def test_a_damaged_page_of_a_parquet_file_is_named_after_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"sentence {i}" for i in range(5000)]
    table = pa.table({"en": texts, "de": texts})
    pyarrow.parquet.write_table(table, path, row_group_size=1000, use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = b"\xff" * 4000
    path.write_bytes(content)
    with pytest.raises(
        UserError, match="a.parquet: damaged after row [1-9][0-9]*: .*; fetch or write it again"
    ):
        read(shards_corpus(path))


def test_a_file_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.txt", tmp_path):  # removed after the checks; a folder
        with pytest.raises(UserError, match="can not be opened: .*check the path"):
            read(text_corpus(path))
