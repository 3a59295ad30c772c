"""Generated corpora of every format, and how many records stand in each, counted apart from the readers."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import xml.sax
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet

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
