"""Formats beside plain rows: compressed and several files, documents, TMX, PO, data sets on the hub."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data.config import CorpusConfig, DataConfig
from data.mixing import sentences_of
from data.preparation import prepare
from data.recipe import UserError
from data.records import Record, Sentence, TranslationPair
from data.sources import REASONS, Reject, read_corpus
from data.sources.checks import check_corpus
from data.tokenizer import Tokenizer


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


def corpus(**settings: Any) -> CorpusConfig:
    return CorpusConfig.model_validate(settings)


def plain(path: Path | str, **settings: Any) -> CorpusConfig:
    return corpus(kind="monolingual", format="text", path=str(path), language="en", **settings)


def translations(form: str, **settings: Any) -> CorpusConfig:
    return corpus(kind="parallel", format=form, **settings)


def read(config: CorpusConfig, most: int = 100) -> tuple[list[Record], list[tuple[str, int, str, bool]]]:
    """Records, and (name of the file, line, reason, whole record) of what was not kept."""
    check_corpus(config, "corpora.a")
    items = list(read_corpus(config, most))
    places = [item.where if isinstance(item, Reject) else item[0] for item in items]
    assert places == sorted(places)
    rejects = [item for item in items if isinstance(item, Reject)]
    assert {reject.reason for reject in rejects} <= set(REASONS)
    kept = [item[1] for item in items if not isinstance(item, Reject)]
    return kept, [(Path(each.file).name, each.line, each.reason, each.whole_record) for each in rejects]


def pair(*texts: tuple[str, str]) -> TranslationPair:
    return TranslationPair(texts)


# ---- compression and several files -----------------------------------------------------------------------


@pytest.mark.parametrize("form", COMPRESSIONS)
def test_compression_is_seen_through_and_a_torn_file_is_refused_after_its_last_line(
    tmp_path: Path, form: str
) -> None:
    path = tmp_path / "misnamed.txt"
    packed = COMPRESSIONS[form]("".join(f"sentence {i} {i * i}\n" for i in range(30000)).encode())
    path.write_bytes(packed)
    kept, rejects = read(plain(path))
    assert len(kept) == 30000 and kept[-1] == Sentence("en", "sentence 29999 899940001") and not rejects
    path.write_bytes(packed + packed)
    assert len(read(plain(path))[0]) == 60000
    for end in (len(packed) - 1, len(packed) // 2):
        path.write_bytes(packed[:end])
        with pytest.raises(
            UserError, match=r"misnamed.txt: damaged after line \d+: .*; fetch or write it again"
        ):
            list(read_corpus(plain(path), 100))


def test_the_letters_of_a_signature_alone_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"BZhou\n")
    assert read(plain(tmp_path / "a.txt")) == ([Sentence("en", "BZhou")], [])


def test_the_files_of_a_pattern_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\n\n"))
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\ntwo")
    (tmp_path / "c.md").write_bytes(b"four")
    kept, rejects = read(plain(tmp_path / "*.txt*"))
    assert kept == [Sentence("en", text) for text in ("one", "two", "three")]
    assert rejects == [("a.txt", 2, "invalid_utf8", True), ("b.txt.gz", 2, "empty", True)]
    with pytest.raises(UserError, match=r"corpora.a.path: no file matches .*\*.tsv; paths start at"):
        read(plain(tmp_path / "*.tsv"))
    (tmp_path / "[x].txt").write_bytes(b"a file that looks like a pattern")
    assert len(read(plain(tmp_path / "[x].txt"))[0]) == 1


def test_parallel_patterns_pair_their_files_by_order(tmp_path: Path) -> None:
    for name, content in {"1.en": "a\nb\n", "1.de": "A\nB\n", "2.en": "c\n", "2.de": "\n"}.items():
        (tmp_path / name).write_text(content)
    paths = {"en": str(tmp_path / "*.en"), "de": str(tmp_path / "*.de")}
    kept, rejects = read(translations("text", paths=paths))
    assert kept == [pair(("en", "a"), ("de", "A")), pair(("en", "b"), ("de", "B"))]
    assert rejects == [("2.de", 1, "empty", True)]
    (tmp_path / "3.en").write_text("d\n")
    with pytest.raises(UserError, match=r"the same number of files: .*\*.en has 3, .*\*.de has 2"):
        read(translations("text", paths=paths))


# ---- documents -------------------------------------------------------------------------------------------


def test_a_document_keeps_its_lines_as_its_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\n\nDr. A. B. said so.\nYes. No.\n\n \nlone\n\xa0\n".encode() + b"\xff\ngood\n\n\xff\n")
    kept, rejects = read(plain(path, document_characters=1000))
    assert kept == [
        Sentence("en", "Dr. A. B. said so.\nYes. No."), Sentence("en", "lone"), Sentence("en", "good")
    ]  # fmt: skip
    assert rejects == [("a.txt", 9, "invalid_utf8", False), ("a.txt", 12, "invalid_utf8", True)]
    assert isinstance(kept[0], Sentence)
    assert sentences_of(kept[0].text) == ["Dr. A. B. said so.\n", "Yes. No."]


def test_a_long_document_goes_on_in_another_record_between_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = ["a" * 30, "b" * 30, "c" * 60, "d" * 200, "e"]
    path.write_text("\n".join(lines))
    kept, rejects = read(plain(path, document_characters=62))
    texts = [record.text for record in kept if isinstance(record, Sentence)]
    assert texts == ["a" * 30 + "\n" + "b" * 30, "c" * 60, "e"]
    assert rejects == [("a.txt", 4, "too_long", True)]


def test_parallel_documents_keep_the_numbers_of_their_sentences(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"One.\nTwo.\nThree.\n\nFour.\nFive.\n")
    (tmp_path / "a.de").write_bytes(b"Eins.\n\xff\nDrei.\n\nVier.\n\n")
    paths = {"en": str(tmp_path / "a.en"), "de": str(tmp_path / "a.de")}
    kept, rejects = read(translations("text", paths=paths, document_characters=500))
    assert kept == [
        pair(("en", "One.\nThree."), ("de", "Eins.\nDrei.")),
        pair(("en", "Four."), ("de", "Vier.")),
    ]
    assert rejects == [("a.de", 2, "invalid_utf8", False), ("a.de", 6, "empty", True)]


@pytest.mark.parametrize("text", ["a\nb", "\n a\n\n  b \n\n", "a.\n \nb", "a\u2028b\nc"])
def test_the_sentences_of_a_document_joined_are_the_document(text: str) -> None:
    assert "".join(sentences_of(text)) == text and len(sentences_of(text)) == 2


def test_in_the_store_a_document_keeps_its_lines_and_the_tokenizer_reads_spaces(
    configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("Open the door.\nClose it.\n\nGo home.\n")
    documents = {"kind": "monolingual", "format": "text", "path": str(tmp_path / "*.txt"), "language": "en"}
    store = prepare(configure(corpora={"a": {**documents, "document_characters": 2000}}), workers=1)
    found = store.corpora["a"]
    assert [found.text(0), found.text(1)] == ["Open the door.\nClose it.", "Go home."]
    (ids,) = Tokenizer.open(store.tokenizer_folder).encode(["Open the door. Close it."])
    assert found.ids(0).tolist() == ids.tolist()


# ---- TMX -------------------------------------------------------------------------------------------------

TMX = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en"/><body>
<tu tuid="1"><prop type="x">no text</prop>
 <tuv xml:lang="EN-us"><seg>Save <bpt i="1">&lt;b&gt;</bpt>&amp; <hi>go</hi><ept i="1">&lt;/b&gt;</ept>
  on</seg></tuv>
 <tuv xml:lang="de"><note>kein Text</note><seg>Speichern ü</seg></tuv>
 <tuv lang="de"><seg>Sichern</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>alone</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg></seg></tuv><tuv xml:lang="de"><seg>leer</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>x</seg></tuv><tuv xml:lang="pt_br"><seg>y</seg></tuv></tu>
</body></tmx>
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252"])
def test_translation_units_in_any_encoding_with_markup_left_out(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.tmx"
    path.write_bytes(TMX.format(encoding=encoding).encode(encoding))
    kept, rejects = read(translations("tmx", path=str(path)))
    assert kept == [pair(("en-US", "Save & go on"), ("de", "Speichern ü")), pair(("en", "x"), ("pt-BR", "y"))]
    assert rejects == [
        ("a.tmx", 4, "repeated_language", False),
        ("a.tmx", 9, "fewer_than_two_languages", True),
        ("a.tmx", 10, "empty", True),
    ]
    kept, rejects = read(translations("tmx", path=str(path), languages=["en", "de"]))
    assert kept == [pair(("en", "Save & go on"), ("de", "Speichern ü"))]
    assert [line for _, line, _, whole in rejects if whole] == [9, 10, 11]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<?xml version="1.0"?>\n<!DOCTYPE tmx [<!ENTITY a "aa">]><tmx/>', "line 2 declares an entity"),
        ('<!DOCTYPE t [<!ENTITY f SYSTEM "file:///etc/passwd">]><t>&f;</t>', "line 1 declares an entity"),
        (TMX.format(encoding="utf-8")[:-30], "not XML from line 11 on: .*xmllint"),
        ("plain text", "not XML from line 1"),
        ("", "not XML from line 1"),
        ('<?xml version="1.0" encoding="nonsense"?><tmx/>', "nonsense|not XML"),
    ],
)
def test_what_is_no_tmx_is_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.tmx").write_text(content)
    with pytest.raises(UserError, match=f"a.tmx: .*({message})"):
        read(translations("tmx", path=str(tmp_path / "a.tmx")))


def test_a_torn_compressed_tmx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tmx.gz").write_bytes(gzip.compress(TMX.format(encoding="utf-8").encode())[:-20])
    with pytest.raises(UserError, match="a.tmx.gz: (damaged after line|not XML)"):
        read(translations("tmx", path=str(tmp_path / "a.tmx.gz")))


# ---- gettext ---------------------------------------------------------------------------------------------

PO = r"""msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=n != 1;\n"

#: a.py:1
msgctxt "menu"
msgid "Open"
msgstr "Öffnen"

#, fuzzy
msgid "Close"
msgstr "Zu"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d "
"Dateien"

msgid "untranslated"
msgstr ""

#~ msgid "old"
#~ msgstr "alt"
"""


def test_entries_of_catalogs_are_pairs_located_by_their_first_line(tmp_path: Path) -> None:
    pytest.importorskip("polib")
    (tmp_path / "de.po.gz").write_bytes(gzip.compress(PO.encode()))
    (tmp_path / "fr.po").write_bytes('msgid "a\rb"\r\nmsgstr "c\u2028d"\r\n'.encode())
    paths = {"de": str(tmp_path / "de*"), "fr": str(tmp_path / "fr.po")}
    kept, rejects = read(translations("po", source="en", paths=paths))
    assert kept == [
        pair(("en", "Open"), ("de", "Öffnen")),
        pair(("en", "%d files"), ("de", "%d Dateien")),
        pair(("en", "old"), ("de", "alt")),
        pair(("en", "a\rb"), ("fr", "c\u2028d")),
    ]
    assert rejects == [("de.po.gz", 9, "fuzzy", True), ("de.po.gz", 19, "empty", True)]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'msgid "a"\nmsgstr "b\nmsgid c\n', "a.po: line 2 is no line"), (b'msgid "a"\nmsgstr "\xff"\n', "UTF-8"),
     (b"nothing of the kind\n", "line 1 is no line"), (b'msgstr "b"\n', "Syntax error .*line 1")],
)  # fmt: skip
def test_what_is_no_catalog_is_refused_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    pytest.importorskip("polib")
    (tmp_path / "a.po").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(translations("po", source="en", paths={"de": str(tmp_path / "a.po")}))


# ---- the hub ---------------------------------------------------------------------------------------------


def test_a_data_set_on_the_hub_is_streamed_at_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"t": {"en": f"a{i}", "de": f"b{i}" if i else None}, "id": i} for i in range(3)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked: list[tuple[Any, ...]] = []
    load = datasets.load_dataset

    def local(name: str, subset: str | None, *, revision: str, streaming: bool) -> Any:
        asked.append((name, subset, revision, streaming))
        if name != "owner/set":
            raise FileNotFoundError("Dataset 'owner/sett' doesn't exist on the Hub")
        return load(
            "json", data_files={s: str(tmp_path / f"{s}.jsonl") for s in ("train", "test")}, streaming=True
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    keys = {"hub": "owner/set", "revision": "0" * 40, "translations": "t"}
    kept, rejects = read(translations("huggingface", **keys, split="train"))
    assert asked[0] == ("owner/set", None, "0" * 40, True)
    assert kept == [pair(("en", f"a{i}"), ("de", f"b{i}")) for i in (1, 2)]
    assert rejects == [("set", 1, "fewer_than_two_languages", True)]
    with pytest.raises(
        UserError, match="owner/set: the key 'split' is needed; it has the splits train, test"
    ):
        read(translations("huggingface", **keys))
    with pytest.raises(
        UserError, match="owner/sett: the data set can not be read from the hub: .*save_to_disk"
    ):
        read(translations("huggingface", **{**keys, "hub": "owner/sett"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "huggingface", "hub": "a/b", "translations": "t"}, "needs the key 'revision'"),
        (
            {"format": "huggingface", "hub": "a/b", "path": "c", "translations": "t"},
            "'hub' does not belong",
        ),
        ({"format": "po", "paths": {"de": "a.po"}}, "needs the key 'source'"),
        ({"format": "po", "paths": {"de": "a.po"}, "source": "de"}, "holds its source language, de"),
        ({"format": "tmx", "path": "a.tmx", "languages": ["de"]}, "'languages' leaves nothing"),
        (
            {"format": "tsv", "path": "a", "columns": ["en", "de"], "document_characters": 9},
            "does not belong to",
        ),
        ({"format": "tmx", "kind": "monolingual", "path": "a.tmx"}, "monolingual corpora come as"),
    ],
)
def test_keys_fit_the_format(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corpus(**{"kind": "parallel", **settings})


def test_a_catalog_without_its_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polib", None)
    (tmp_path / "a.po").write_text(PO)
    with pytest.raises(UserError, match="pip install polib"):
        read(translations("po", source="en", paths={"de": str(tmp_path / "a.po")}))
