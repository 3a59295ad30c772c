"""A word list out of the demo's own translations: what is found, from which corpora, and what is said otherwise."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data import induction
from data.induce import main
from data.induction import Induced, induce
from data.lexicon import Lexicon, read_entries

DEMO = Path("data/corpora/demo")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with gzip.open(DEMO / "parallel_train.jsonl.gz") as file:
        return [json.loads(line)["t"] for line, _ in zip(file, range(900), strict=False)]


def found_in(rows: list[dict[str, str]], language: str) -> list[Induced]:
    return induce([(row["en"], row[language]) for row in rows if language in row], language)


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("de", {("lock", "Schloss"), ("user", "Benutzer"), ("device", "Gerät"), ("and", "und")}),
        ("ru", {("password", "пароль"), ("and", "и"), ("file", "файл")}),
        ("zh", {("password", "密码"), ("device", "设备"), ("file", "文件")}),
    ],
)
def test_frequent_words_are_found_as_they_are_written_inside_sentences(
    rows: list[dict[str, str]], language: str, words: set[tuple[str, str]]
) -> None:
    entries = found_in(rows, language)
    assert words <= {(entry.english, entry.translation) for entry in entries if entry.kind == "word"}
    assert all(entry.seen >= 2 and entry.share >= induction.THRESHOLDS.share for entry in entries)
    phrases = [entry for entry in entries if entry.kind == "phrase"]
    assert phrases and all(2 <= len(entry.english.split()) <= 4 for entry in phrases)
    assert not any(entry.english.casefold() == entry.translation.casefold() for entry in entries)
    if language != "zh":
        assert all(len(entry.translation.split()) <= 4 for entry in entries)


def write_recipe(folder: Path, rows: list[dict[str, str]], held_out: list[dict[str, str]]) -> Path:
    for name, texts in (("rows", rows), ("test", held_out)):
        lines = [json.dumps({"t": row}, ensure_ascii=False) for row in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = f"{{kind: parallel, format: jsonl, path: {folder}/NAME.jsonl, translations: t"
    (folder / "recipe.yaml").write_text(
        f"store: {folder}/store\ntokenizer: {{train: {{}}}}\nlexicons: [{{path: {folder}/induced.tsv}}]\ncorpora:\n"
        f"  rows: {corpus.replace('NAME', 'rows')}}}\n  test: {corpus.replace('NAME', 'test')}, held_out: true}}\n",
        encoding="utf-8",
    )
    return folder / "recipe.yaml"


def test_the_command_reads_training_corpora_alone_and_writes_what_training_reads(
    tmp_path: Path,
) -> None:
    rows = [{"en": f"the cat {i} sleeps", "de": f"die Katze {i} schläft", "fr": "x"} for i in range(60)]
    rows += [{"en": "a dog barks", "de": "ein Hund bellt"}] * 3 + [{"de": "ohne", "fr": "sans"}]
    held_out = [{"en": "secret word", "de": "geheimes Wort"}] * 60
    recipe = write_recipe(tmp_path, rows, held_out)
    for name in ("induced.tsv", "induced.tsv.gz"):
        out = tmp_path / name
        assert main(["--recipe", str(recipe), "--out", str(out)]) == 0
        entries = list(read_entries(out))
        assert {entry.language for entry in entries} == {"de"}  # nothing can be learned from 60 times x
        words = {(entry.english, entry.translation) for entry in entries}
        assert {("cat", "Katze"), ("sleeps", "schläft"), ("dog", "Hund")} <= words
        assert "secret" not in {word for word, _ in words}
    lexicon = Lexicon.load([tmp_path / "induced.tsv"])
    assert lexicon.translations("en", "cat") == (("de", "Katze"),)
    again = (tmp_path / "induced.tsv").read_bytes()
    assert main(["--recipe", str(recipe), "--out", str(tmp_path / "induced.tsv")]) == 0
    assert (tmp_path / "induced.tsv").read_bytes() == again


def test_more_pairs_than_wanted_are_drawn_evenly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"en": f"word{i // 40}", "de": f"Wort{i // 40}"} for i in range(800)]
    recipe = write_recipe(tmp_path, rows, rows[:1])
    out = tmp_path / "induced.tsv"
    assert main(["--recipe", str(recipe), "--out", str(out), "--maximum-pairs", "400"]) == 0
    assert "400" in capsys.readouterr().out
    assert len({entry.english for entry in read_entries(out)}) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "nowhere/x.tsv"], "there is no folder"),
        (["--out", "x.tsv", "--maximum-pairs", "0"], "at least one pair"),
        (["--out", "x.tsv", "--set", "corpora.rows.held_out=true"], "there is nothing to learn words from"),
        (["--out", "x.tsv", "--set", "corpora.rows.path=none.jsonl"], "there is no file none.jsonl"),
    ],
)
def test_what_can_not_be_done_is_said_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    recipe = write_recipe(tmp_path, [{"en": "a b", "de": "c d"}] * 60, [{"en": "a", "de": "b"}])
    arguments = [str(tmp_path / a) if a.endswith(".tsv") else a for a in arguments]
    assert main(["--recipe", str(recipe), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tsv"))
