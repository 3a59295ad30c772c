"""Generated corpora of every format: nothing but clean refusals, and read = kept + rejected, every reject located.

What is expected is counted apart from the readers: lines by newlines, units by another parser, rows by their number.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import signal
import xml.sax
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.config import CorpusConfig, DataConfig
from data.prepare import prepare
from data.recipe import UserError
from data.records import segments
from data.sources import REASONS, Reject, read_corpus
from data.sources.checks import check_corpus
from data.sources.shifts import check_alignment

MOST = 200  # characters
WORDS = [
    "the door",
    "Tür",
    "дверь",
    "扉を開く",
    "الباب",
    "%s",
    "{name}",
    "12",
    "1e999",
    "e\u0301",
    "👩‍👩‍👧",
    "a" * 150,
    "<b>&amp;",
]
NASTY = [
    b"\xff", b"\xfe\xff", b"\xff\xfe", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xed\xa0\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xef\xbb\xbf", b"\x00", b"\r", b"\r\r", b"\x0c", b"\x0b", b"\x1c", b"\x1e", b"\x85", b"\x1a", b"\t",
    b"\t\t", b'"', b"\\", b"\\ud800",
    b"<", b"&", b"&#0;", b"]]>", b"<tu>", b"</seg>", b"[" * 3000, b'{"t":', b"null", b"NaN", b"x" * 300, b"9" * 5000,
    *(each.encode() for each in (
        "\u2028", "\u2029", "\u0085", "\u202e", "\u2066", "\u200b", "\u200d", "\ufeff", "\ufffe",
        "\U0010ffff", "\u3000", "\u0301",
    )),
]  # fmt: skip
ENDS = [b"\n"] * 6 + [b"\r\n", b"\n\n", b"\r\n\r\n", b"", b"\r"]


def text_of(random: Random) -> str:
    return " ".join(random.choices(WORDS, k=random.randrange(4)))


def spoiled(random: Random, line: bytes, often: float = 0.25) -> bytes:
    """The line with something nasty in it, sometimes."""
    while random.random() < often:
        at = random.randrange(len(line) + 1)
        line = line[:at] + random.choice(NASTY) + line[at + random.choice((0, 0, 3)) :]
    return line


def lines_of(random: Random, make: Callable[[], bytes]) -> bytes:
    lines = [spoiled(random, make()) + random.choice(ENDS) for _ in range(random.choice([0, 1, 5, 30]))]
    content = b"".join(lines)
    if random.random() < 0.05:
        content = content.decode("utf-8", "replace").encode("utf-16")
    return random.choice([b"", b"", b"", b"\xef\xbb\xbf"]) + content


def number_of_lines(content: bytes) -> int:
    return len(content.split(b"\n")) - (not content or content.endswith(b"\n"))


# ---- one corpus of each format: settings, files, and how many records are read of them -------------------

Case = tuple[dict[str, Any], dict[str, bytes], Callable[[], int]]


def mono_text(random: Random) -> Case:
    content = lines_of(random, lambda: text_of(random).encode())
    return (
        {"format": "text", "kind": "monolingual", "language": "de"},
        {"a": content},
        lambda: number_of_lines(content),
    )


def documents(random: Random) -> Case:
    content = lines_of(random, lambda: text_of(random).encode())

    def runs() -> int:
        blank = []
        for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            try:
                blank.append(not line.removesuffix(b"\r").decode().strip())
            except UnicodeDecodeError:
                blank.append(False)
        return sum(not here and before for here, before in zip(blank, [True, *blank], strict=False))

    settings = {"format": "text", "kind": "monolingual", "language": "de", "document_characters": 10**9}
    return settings, {"a": content}, runs


def parallel_text(random: Random) -> Case:
    rows = random.choice([0, 1, 20])
    sides = [
        b"".join(spoiled(random, text_of(random).encode()).replace(b"\n", b"") + b"\n" for _ in range(rows))
        for _ in range(random.choice([2, 3]))
    ]
    files = {f"a.{code}": side for code, side in zip(("de", "en", "fr"), sides, strict=False)}
    return {"format": "text", "kind": "parallel", "paths": True}, files, lambda: rows


def tsv(random: Random) -> Case:
    def line() -> bytes:
        return "\t".join(text_of(random) for _ in range(random.choice([2, 2, 2, 1, 3, 7]))).encode()

    content = lines_of(random, line)
    settings = {"format": "tsv", "kind": "parallel", "columns": ["de", "en"]}
    if random.random() < 0.3:
        settings = {"format": "tsv", "kind": "monolingual", "columns": ["text", "language"]}
    return settings, {"a": content}, lambda: number_of_lines(content)


def value_of(random: Random, depth: int = 0) -> Any:
    simple: list[Any] = [
        None,
        True,
        0,
        -1.5,
        10**400,
        float("nan"),
        "",
        "de",
        "\ud800",
        "a\tb\nc",
        text_of(random),
    ]
    if depth > 2 or random.random() < 0.8:
        return random.choice(simple)
    if random.random() < 0.5:
        return [value_of(random, depth + 1) for _ in range(random.randrange(4))]
    return {
        random.choice(["en", "de", "t", "", "d e", "\n", "x" * 500]): value_of(random, depth + 1)
        for _ in range(3)
    }


def jsonl(random: Random) -> Case:
    shapes: list[tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = [
        ({"kind": "parallel", "translations": "t"},
         lambda: {"t": {"en": text_of(random), "de": text_of(random), "fr": "c"}}),
        ({"kind": "parallel", "fields": {"en": "e", "de": "d"}}, lambda: {"e": text_of(random), "d": text_of(random)}),
        ({"kind": "monolingual", "text": "t", "language": {"field": "l"}}, lambda: {"t": text_of(random), "l": "de"}),
        ({"kind": "scored", "anchor": "a", "positive": "p", "negatives": "n", "scores": "s", "language": "de"},
         lambda: {"a": text_of(random), "p": "b", "n": ["c"], "s": [0.5, 0.25]}),
    ]  # fmt: skip
    settings, row = random.choice(shapes)

    def line() -> bytes:
        made = row()
        while random.random() < 0.3:
            made[random.choice([*made, "other"])] = value_of(random)
        return json.dumps(made, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")

    content = lines_of(random, line)
    return {"format": "jsonl", **settings}, {"a": content}, lambda: number_of_lines(content)


class Units(xml.sax.ContentHandler):
    """Counts translation units."""

    units = 0

    def endElement(self, name: str) -> None:
        self.units += name == "tu"


def tmx(random: Random) -> Case:
    def unit() -> str:
        sides = "".join(
            f'<tuv xml:lang="{random.choice(["en", "de", "EN-us", "", "d e", "fr_FR"])}"><seg>'
            + text_of(random).replace("<b>&amp;", "<bpt i='1'>x</bpt>&amp;<hi>y</hi>") + "</seg></tuv>"
            for _ in range(random.choice([0, 1, 2, 2, 2, 4]))
        )  # fmt: skip
        return f"<tu>{sides}</tu>{random.choice(['', chr(10)])}"

    inner = "".join(unit() for _ in range(random.choice([0, 1, 10])))
    content = f'<?xml version="1.0"?>\n<tmx version="1.4"><body>\n{inner}</body></tmx>\n'.encode()
    content = spoiled(random, content) if random.random() < 0.5 else content
    if random.random() < 0.1:
        content = content.decode("utf-8", "replace").encode("utf-16")

    def units() -> int:
        counted = Units()
        xml.sax.parseString(content, counted)
        return counted.units

    languages = {"languages": ["en", "de"]} if random.random() < 0.5 else {}
    return {"format": "tmx", "kind": "parallel", **languages}, {"a": content}, units


def po(random: Random) -> Case:
    def quoted(word: str, text: str) -> str:
        return f"{word} {json.dumps(text, ensure_ascii=False)}\n"

    def entry() -> str:
        marks = random.choice(["", "#: a.py:1\n", "#, fuzzy\n", "# note\n", "#. more\n"])
        if random.random() < 0.2:
            plural = (
                quoted("msgid_plural", text_of(random)) + quoted("msgstr[0]", "a") + quoted("msgstr[1]", "b")
            )
            return marks + quoted("msgid", "one " + text_of(random)) + plural
        context = quoted("msgctxt", text_of(random)) if random.random() < 0.3 else ""
        return marks + context + quoted("msgid", "id " + text_of(random)) + quoted("msgstr", text_of(random))

    content = "\n".join(entry() for _ in range(random.choice([0, 1, 12]))).encode()
    content = spoiled(random, content) if random.random() < 0.5 else content

    def entries() -> int:
        return len(re.findall(rb'(?m)^(?:\xef\xbb\xbf)?\s*msgid\s*"', content))

    return {"format": "po", "kind": "parallel", "source": "en", "paths": True}, {"a.de": content}, entries


def parquet(random: Random) -> Case:
    rows = random.choice([0, 1, 50])
    texts = [random.choice([None, "", " ", text_of(random), "\u200b", "x\ny", "\x00"]) for _ in range(rows)]
    others: list[Any] = [random.choice([None, text_of(random), "b"]) for _ in range(rows)]
    kind = random.random()
    if kind < 0.2:
        others = list(range(rows))
    elif kind < 0.4:
        others = [[text] for text in others]
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"e": pa.array(texts, pa.string()), "d": others}), sink)
    content = sink.getvalue()
    if random.random() < 0.4:
        at = random.randrange(len(content))
        content = (
            content[:at]
            + random.randbytes(random.choice([0, 1, 40]))
            + content[at + random.choice([0, 1, 40]) :]
        )
    settings = {"format": "huggingface", "kind": "parallel", "fields": {"en": "e", "de": "d"}}
    return settings, {"a": content}, lambda: rows


FORMATS = {
    each.__name__: each for each in (mono_text, documents, parallel_text, tsv, jsonl, tmx, po, parquet)
}  # fmt: skip


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


COMPRESS: list[Callable[[bytes], bytes]] = [gzip.compress, bz2.compress, lzma.compress, zstd]


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
        assert (
            all(len(row) == 6 for row in rows)
            and sum(row[5] == "record" for row in rows) == entry["rejected"]
        )
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
