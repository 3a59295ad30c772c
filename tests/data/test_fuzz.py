"""Generated corpora of every format: nothing but clean refusals, and read = kept + rejected, every reject located.

What is expected is counted apart from the readers: lines by newlines, units by another parser, rows by their number.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data.config import CorpusConfig, DataConfig
from data.preparation import prepare
from data.recipe import UserError
from data.records import segments
from data.sources import REASONS, Reject, Where, read_corpus
from data.sources.checks import check_corpus
from data.sources.shifts import check_alignment
from tests.data.generated_corpora import (
    COMPRESS,
    FORMATS,
    MOST,
    Case,
    number_of_lines,
)

# ---- what must hold --------------------------------------------------------------------------------------


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def begins_at(form: str, content: bytes, where: Where) -> bool:
    """Whether a record or a text begins where it is said to: line and byte in the content before it was compressed."""
    before = content[: where.byte]
    if form == "huggingface":
        return where.byte == -1
    if form == "tmx":
        coding = "utf-16-le" if content.startswith(b"\xff\xfe") else "latin-1"
        return re.match(r"<tu[\s/>]", content[where.byte :].decode(coding, "replace")) is not None
    return before[-1:] in (b"", b"\n") and before.count(b"\n") == where.line - 1


def check(folder: Path, case: Case, random: Random, how: str) -> str:
    """Read one generated corpus; returns whether it was "refused" or "read"."""
    settings, files, expected = case
    torn = False
    for name, content in files.items():
        if random.random() < 0.2 and settings["format"] != "huggingface":
            packed = random.choice(COMPRESS)(content)
            torn = random.random() < 0.3
            content = packed[: random.randrange(1, len(packed))] if torn else packed
        (folder / name).write_bytes(content)
    paths = {name: str(folder / name) for name in files}
    if settings.pop("paths", False):
        place: dict[str, Any] = {"paths": {name.split(".")[1]: path for name, path in paths.items()}}
    else:
        place = {"path": paths["a"]}
    config = CorpusConfig.model_validate({**settings, **place})
    try:
        check_corpus(config, "corpora.a")
        check_alignment(config, "corpora.a")
        items = list(read_corpus(config, MOST))
    except UserError as error:
        assert str(folder) in str(error), error
        return "refused"
    whole = [item.where if isinstance(item, Reject) else item[0] for item in items
             if not isinstance(item, Reject) or item.whole_record]  # fmt: skip
    for where in {item.where if isinstance(item, Reject) else item[0] for item in items}:
        assert torn or begins_at(settings["format"], files[Path(where.file).name], where), how
    if not torn:  # a stream cut within its first bytes may be a plain text of a few
        assert len(whole) == expected(), how
        last = (
            max(number_of_lines(content) + content.count(b"\r") for content in files.values()) + 1
        )  # XML's lines
        if settings["format"] == "huggingface":
            last = expected()
        assert all(1 <= where.line <= last for where in whole)
    assert len(set(whole)) == len(whole) or settings["format"] == "tmx"  # several units may stand in a line
    for item in items:
        if isinstance(item, Reject):
            assert item.reason in REASONS and item.file in paths.values() and item.language.isprintable()
        else:
            assert item[0].file in paths.values()
            for language, text in segments(item[1]):
                assert text.strip() and len(text) <= MOST and text.encode() and language.isascii()
    return "read"


def run(tmp_path: Path, numbers: range) -> None:
    outcomes: dict[tuple[str, str], int] = {}
    for number in numbers:
        random = Random(number)
        name = list(FORMATS)[number % len(FORMATS)]
        folder = tmp_path / str(number)
        folder.mkdir()
        with within(30):
            outcome = check(folder, FORMATS[name](random), random, f"{name}, seed {number}")
        outcomes[name, outcome] = outcomes.get((name, outcome), 0) + 1
    assert all(outcomes.get((name, "read")) for name in FORMATS), outcomes  # not everything is refused


def test_2000_generated_corpora(tmp_path: Path) -> None:
    run(tmp_path, range(2000))


@pytest.mark.slow
def test_20000_generated_corpora(tmp_path: Path) -> None:
    run(tmp_path, range(2000, 22000))


def test_stores_of_generated_corpora_account_for_every_record(
    configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    built = 0
    for number in range(24):
        random = Random(number)
        settings, files, expected = FORMATS[list(FORMATS)[number % len(FORMATS)]](random)
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if settings.pop("paths", False):
            settings["paths"] = {name.split(".")[1]: str(folder / name) for name in files}
        else:
            settings["path"] = str(folder / "a")
        cleaning: dict[str, Any] = {"length_ratio": 3, "unicode": "nfc"}
        if number >= 8:
            cleaning["duplicates"] = "exact"
        if number >= 16:
            pytest.importorskip("rensa")
            pytest.importorskip("py3langid")
            cleaning |= {"duplicates": "near", "language": {"letters": 1, "maximum_wrong": 1}}
        config = configure(corpora={"a": settings}, store=str(folder / "store"), cleaning=cleaning)
        try:
            store = prepare(config, workers=1, say=lambda message: None)
        except UserError as error:
            assert "corpora.a" in str(error) or str(folder) in str(error)
            continue
        built += 1
        entry = store.manifest["corpora"]["a"]
        assert entry["read"] == entry["records"] + entry["rejected"] == expected()
        listed = (store.folder / "rejects.tsv").read_text(encoding="utf-8").split("\n")[1:-1]
        rows = [line.split("\t") for line in listed]
        assert all(len(row) == 7 for row in rows)
        assert sum(row[6] == "record" for row in rows) == entry["rejected"]
        for _, file, line, byte, *_ in rows:
            where = Where(0, int(line), file, int(byte or -1))
            assert begins_at(settings["format"], files[Path(file).name], where)
    assert built >= 8


# ---- giants ----------------------------------------------------------------------------------------------


def giants() -> Iterator[tuple[str, dict[str, Any], bytes, int | None]]:
    """(what, settings, content, records read, or None for a refusal)"""
    line, empty = b"x" * 50_000_000, b"\n" * 1_000_000
    text = {"format": "text", "kind": "monolingual", "language": "de"}
    rows = {"format": "jsonl", "kind": "parallel", "translations": "t"}
    columns = {"format": "tsv", "kind": "parallel", "columns": ["en", "de"]}
    units = {"format": "tmx", "kind": "parallel"}
    head = b'<tmx><body><tu><tuv xml:lang="en"><seg>'
    foot = b'</seg></tuv><tuv xml:lang="de"><seg>y</seg></tuv></tu></body></tmx>'
    yield "text, a line", text, b"a\n" + line + b"\nb", 3
    yield "json, a line", rows, b'{"t": {"en": "' + line + b'", "de": "y"}}\n{}\n', 2
    yield "text, empty lines", text, empty, 1_000_000
    yield "tsv, a line", columns, line + b"\ta\nb\tc\n", 2
    yield "tmx, a text", units, head + line + foot, 1
    yield "tmx, empty lines", units, head + empty + foot, 1
    yield "tmx, an attribute", units, head.replace(b"en", line) + b"x" + foot, None
    yield "json, empty lines", rows, empty, 1_000_000
    yield "tsv, empty lines", columns, empty, 1_000_000
    yield "documents, empty lines", {**text, "document_characters": 100}, empty, 0
    yield "documents, a line", {**text, "document_characters": 100}, b"a\n" + line + b"\nb", 1
    yield "json, nested", rows, b"[" * 10_000_000, 1
    yield "json, a number", rows, b'{"t": ' + b"9" * 10_000_000 + b"}", 1


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 13))])
def test_giant_lines_and_a_million_empty_ones(tmp_path: Path, number: int) -> None:
    what, settings, content, expected = list(giants())[number]
    path = tmp_path / "a"
    path.write_bytes(content)
    config = CorpusConfig.model_validate({**settings, "path": str(path)})
    with within(120):
        check_corpus(config, "corpora.a")
        items = read_corpus(config, 10_000)
        try:
            found = sum(item.whole_record if isinstance(item, Reject) else 1 for item in items)
        except UserError as error:
            assert expected is None and str(path) in str(error)
        else:
            assert found == expected, what
