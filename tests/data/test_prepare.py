"""Preparation: the same bytes for any number of workers, all or nothing, nothing replaced in silence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.config import DataConfig
from data.counts import summary
from data.inputs import differences
from data.preparation import prepare
from data.prepare import main
from data.recipe import UserError
from data.store import TokenStore
from data.tokenizer import Tokenizer

Configure = Callable[..., DataConfig]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def recipe(folder: Path, config: DataConfig, **others: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**config.model_dump(mode="json"), **others}))  # JSON is YAML
    return str(path)


def test_bytes_are_the_same_for_any_number_of_workers(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.build.SEGMENTS_PER_CHUNK", 100)  # a dozen chunks
    built = [
        files(prepare(configure(store=str(tmp_path / f"s{workers}")), workers=workers).folder)
        for workers in (1, 2, 3)
    ]
    assert built[0] == built[1] == built[2]


def test_the_cuts_between_chunks_leave_no_trace(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files(prepare(configure(store=str(tmp_path / "whole")), workers=1).folder)
    monkeypatch.setattr("data.build.SEGMENTS_PER_CHUNK", 1)
    assert files(prepare(configure(store=str(tmp_path / "cut")), workers=1).folder) == whole


def test_a_store_of_the_same_inputs_is_used_as_it_is(configure: Configure) -> None:
    said: list[str] = []
    first = prepare(configure(), workers=1)
    before = (first.folder / "manifest.json").stat().st_ino
    again = prepare(configure(), workers=1, say=said.append)
    assert again.fingerprint == first.fingerprint and (first.folder / "manifest.json").stat().st_ino == before
    assert "already prepared" in said[0]


def test_other_inputs_are_named_and_replace_a_store_only_when_asked(
    configure: Configure, tmp_path: Path
) -> None:
    lexicon = tmp_path / "words.tsv"
    lexicon.write_text("de\tone\teins\n")
    first = prepare(configure(lexicons=[{"path": str(lexicon)}]), workers=1)
    before = files(first.folder)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"t": {"en": "one more", "de": "noch eins"}}\n')
    lexicon.write_text("de\tone\teine\n")
    changed = configure(lexicons=[{"path": str(lexicon)}], maximum_tokens=32)
    with pytest.raises(UserError) as error:
        prepare(changed, workers=1)
    said = str(error.value)
    assert "maximum_tokens: was 64, is 32" in said and "--rebuild" in said
    assert (
        "rows.jsonl: has changed" in said
        and "words.tsv: has changed" in said
        and "sentences.jsonl" not in said
    )
    assert files(first.folder) == before
    rebuilt = prepare(changed, workers=1, rebuild=True)
    assert rebuilt.corpora["rows"].records == 61 and rebuilt.fingerprint != first.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["store"]


def test_a_changed_lexicon_alone_changes_the_fingerprint(configure: Configure, tmp_path: Path) -> None:
    lexicon = tmp_path / "words.tsv"
    found = []
    for words in ("de\tone\teins\n", "de\tone\teine\n", "de\tone\teins\n"):
        lexicon.write_text(words)
        store = prepare(configure(lexicons=[{"path": str(lexicon)}]), workers=1, rebuild=True)
        found.append(store.fingerprint)
    assert found[0] == found[2] != found[1]


def test_a_damaged_store_is_refused_and_rebuilt_when_asked(configure: Configure) -> None:
    store = prepare(configure(), workers=1)
    before = files(store.folder)
    (store.folder / "rows.arrow").write_bytes(b"")
    with pytest.raises(UserError, match="rows.arrow has 0 bytes.*--rebuild"):
        prepare(configure(), workers=1)
    assert files(prepare(configure(), workers=1, rebuild=True).folder) == before


def test_a_folder_that_is_no_store_is_never_touched(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="is not a token store; name another folder"):
        prepare(configure(), workers=1, rebuild=True)
    assert (tmp_path / "store" / "thesis.txt").read_text() == "irreplaceable"


def test_a_failure_on_the_way_leaves_the_old_store_and_nothing_else(
    configure: Configure, tmp_path: Path
) -> None:
    before = files(prepare(configure(), workers=1).folder)
    (tmp_path / "held_out.jsonl").write_text('{"t": {"en": "alone"}}\n')
    with pytest.raises(
        UserError, match="corpora.held_out: nothing was kept of 1 records .fewer_than_two_languages 1"
    ):
        prepare(configure(), workers=1, rebuild=True)
    assert files(tmp_path / "store") == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["store"]


def test_every_reject_is_counted_by_reason_and_language_and_listed_by_line(
    configure: Configure, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    configure()  # writes the files
    good = path.read_bytes()
    path.write_bytes(
        good
        + b'{"t": {"en": "a", "de": "b", "fr": ""}}\n'
        + b"\xff\n"
        + b"[]\n"
        + '{"t": {"en": "a", "de": "\u200b"}}\n'.encode()  # empty for the tokenizer only
        + '{"t": {"en": "a", "de": "\u200b", "fr": "c"}}\n'.encode()
        + b'{"t": {"en": "a", "de": 1}}\n'
    )
    store = prepare(configure(), workers=1)
    entry = store.manifest["corpora"]["rows"]
    assert (entry["read"], entry["records"], entry["rejected"]) == (66, 62, 4)
    assert entry["rejected_records"] == {
        "bad_json": {"": 1},
        "empty": {"de": 1},
        "invalid_utf8": {"": 1},
        "unknown_kind_of_value": {"de": 1},
    }
    assert entry["dropped_texts"] == {"empty": {"de": 1, "fr": 1}}
    header, *lines = (store.folder / "rejects.tsv").read_text().splitlines()
    assert header.split("\t") == ["corpus", "file", "line", "byte", "reason", "language", "lost"]
    expected = [
        ("61", "empty", "fr", "text"),
        ("62", "invalid_utf8", "", "record"),
        ("63", "bad_json", "", "record"),
        ("64", "empty", "de", "record"),
        ("65", "empty", "de", "text"),
        ("66", "unknown_kind_of_value", "de", "record"),
    ]
    starts = [0, *(match.end() for match in re.finditer(b"\n", path.read_bytes()))]
    assert [line.split("\t") for line in lines] == [
        ["rows", str(path), number, str(starts[int(number) - 1]), *rest] for number, *rest in expected
    ]
    reported = summary(store.manifest)
    assert "invalid_utf8 1" in reported and "(single texts: empty 2)" in reported


def test_held_out_text_is_prepared_but_never_seen_by_the_tokenizer(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(tokenizer={"train": {"vocabulary_size": 3000, "character_coverage": 1.0}})
    row = {"t": {"en": "\u2672 recycled", "de": "\u2672 verwertet"}}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(row) + "\n")
    store = prepare(config, workers=1)
    tokenizer = Tokenizer.open(store.tokenizer_folder)
    assert not [piece for piece in tokenizer.pieces(range(3000)) if "\u2672" in piece]
    assert tokenizer.unk_id in store.corpora["held_out"].ids(0)


def test_the_command_prints_the_summary_and_leaves_other_sections_alone(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, configure(), model={"layers": 3})
    assert main(["--recipe", path, "--workers", "1", "--set", "maximum_tokens=48"]) == 0
    out = capsys.readouterr().out
    assert "held_out (held out)" in out and "language" in out
    assert TokenStore.open(tmp_path / "store").manifest["maximum_tokens"] == 48


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("corpora.rows.path=rows.jsonk", "corpora.rows.path: there is no file rows.jsonk"),
        ("corpora.rows.translations=texts", "corpora.rows.translations"),
        ("corpora.rows.translation=t", "did you mean 'translations'?"),
        ("tokenizer={path: nowhere}", "there is no such tokenizer folder"),
        ("lexicons=[{path: nowhere.tsv}]", "there is no file nowhere.tsv"),
    ],
)
def test_bad_input_is_one_message_and_exit_2_and_nothing_is_written(
    configure: Configure, tmp_path: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, configure())
    assert main(["--recipe", path, "--set", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert not [entry for entry in tmp_path.iterdir() if entry.is_dir()]


def test_a_bad_lexicon_is_said_before_the_work(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("de\tone\n")
    said: list[str] = []
    with pytest.raises(UserError, match="words.tsv, line 1: expected language, English and translation"):
        prepare(configure(lexicons=[{"path": str(tmp_path / "words.tsv")}]), workers=1, say=said.append)
    assert not said and not [entry for entry in tmp_path.iterdir() if entry.is_dir()]


@pytest.mark.parametrize("store", ["file/store", "file/deep/store", "/proc/no/store"])
def test_a_place_where_no_folder_can_be_made_is_refused(
    configure: Configure, tmp_path: Path, store: str
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="no folder can be made at .*--set store=FOLDER"):
        prepare(configure(store=str(tmp_path / store)), workers=1)
    assert (tmp_path / "file").read_text() == "kept"


def test_damaged_parquet_is_not_blamed_on_the_store(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = [f"sentence {i}" for i in range(4000)]
    pyarrow.parquet.write_table(pa.table({"en": texts, "de": texts}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(content)
    rows = {
        "kind": "parallel",
        "format": "huggingface",
        "path": str(path),
        "fields": {"en": "en", "de": "de"},
    }
    with pytest.raises(UserError) as error:
        prepare(configure(corpora={"rows": rows}), workers=1)
    assert "rows.parquet: damaged after row" in str(error.value)
    assert "could not be written" not in str(error.value)


def test_neither_the_command_nor_its_workers_import_torch(configure: Configure, tmp_path: Path) -> None:
    # a stand-in torch that can not be imported, seen by the command and by the processes that it spawns
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "torch.py").write_text("raise SystemExit('torch was imported')")
    path = recipe(tmp_path, configure())
    environment = {"PYTHONPATH": str(tmp_path / "blocked"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "data.prepare", "--recipe", path, "--workers", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert TokenStore.open(tmp_path / "store").corpora["rows"].records == 60


def test_differences_name_each_leaf_once() -> None:
    old = {"settings": {"a": 1, "b": {"c": [1], "d": 2}}, "files": {"x": "1", "y": "2"}}
    new = {"settings": {"a": 1, "b": {"c": [2], "e": 3}}, "files": {"x": "9", "z": "3"}}
    assert Counter(differences(old, new)) == Counter(
        ["b.c: was [1], is [2]", "b.d: was 2, is not set", "b.e: was not set, is 3"]
        + ["x: has changed", "y: is not used", "z: was not used"]
    )
