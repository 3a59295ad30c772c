"""The token store: Arrow files of segments, memory-mapped, with a manifest of counts and digests.

A segment is one text in one language; a record is a run of consecutive segments. A store is a folder:
    manifest.json              what is in it, from what it was made, sizes and digests of the other files
    tokenizer/                 the tokenizer, as a Hugging Face folder
    CORPUS.arrow               one row a segment: language, record, group, length, ids, text (scored: score)
    CORPUS.records.arrow       start: first segment of each record, and the number of segments at the end
    ids.arrow                  count: of each language, how often each id stands in its training texts
    *.arrow.sums               checksums of the blocks of an Arrow file
    rejects.tsv                what was read and not kept, with the line and the byte where it begins
    counts.tsv                 how much was kept and rejected, by corpus, language and reason
Each Arrow file is a single record batch, so that every column is one stretch of mapped memory. Nothing of it is read
before it is asked for, and nothing is given out that is not what was written (data/columns.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from data.checksums import digest_of_file
from data.columns import ArrowFile, Column
from data.ragged import places
from data.recipe import UserError

MANIFEST = "manifest.json"
IDS = "ids.arrow"
COMPARED_AT_OPEN = 1 << 28  # bytes of a file; a longer list of rejects is left to `verify`
FORMAT = "calque token store"
VERSION = 3  # 2: groups are what equal texts and translations connect; 3: checksums by block, counts of ids


class Corpus:
    """One corpus of a store. Columns are read-only views of the mapped file; S segments, R records."""

    def __init__(
        self,
        folder: Path,
        name: str,
        entry: Mapping[str, Any],
        languages: tuple[str, ...],
        digests: Mapping[str, str],
    ) -> None:
        self.folder = folder
        self.name = name
        self.entry = entry  # the corpus' part of the manifest
        self.languages = languages
        self.kind: str = entry["kind"]
        self.held_out: bool = entry["held_out"]
        self.records: int = entry["records"]
        self.segments: int = entry["segments"]
        self._digests = digests  # of the store's files, by their names

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus, (self.folder, self.name, self.entry, self.languages, self._digests)

    @cached_property
    def segment_language(self) -> Column:
        """(S,) uint16, index into the store's languages."""
        return self._rows.numbers("language")

    @cached_property
    def segment_record(self) -> Column:
        """(S,) int64, ascending."""
        return self._rows.numbers("record")

    @cached_property
    def segment_lengths(self) -> Column:
        """(S,) int32, ids of each segment, special tokens not counted."""
        return self._rows.numbers("length")

    @cached_property
    def segment_groups(self) -> Column:
        """(S,) uint64: segments of one group may mean the same and are never each other's negative (data/groups.py)."""
        return self._rows.numbers("group")

    @cached_property
    def segment_scores(self) -> Column:
        """(S,) float32, the teacher's score against the anchor, NaN for the anchor; scored corpora only."""
        return self._rows.numbers("score")

    @cached_property
    def record_starts(self) -> Column:
        """(R + 1,) int64: record r has the segments record_starts[r] to record_starts[r + 1]."""
        return self._file(f"{self.name}.records.arrow").numbers("start")

    def ids(self, segment: int) -> np.ndarray:
        """The ids of a segment, int32, without special tokens: a view."""
        return self.ids_between(segment, segment + 1)

    def ids_between(self, first: int, last: int) -> np.ndarray:
        """The ids of segments ``first`` to ``last`` (excluded), end to end: a view."""
        ends, values = self.id_columns
        return values[ends[first] : ends[last]]

    def text(self, segment: int) -> str:
        """The text of a segment, whole even where its ids are cut."""
        ends, values = self._text
        return values[ends[segment] : ends[segment + 1]].tobytes().decode("utf-8")

    def texts(self, segments: np.ndarray) -> list[str]:
        """The texts of ``segments`` (n,), by one look into the column."""
        ends, values = self._text
        starts = ends[segments]
        lengths = ends[segments + 1] - starts
        whole, last = values[places(starts, lengths)].tobytes(), np.cumsum(lengths)
        return [
            whole[a:b].decode("utf-8") for a, b in zip((last - lengths).tolist(), last.tolist(), strict=True)
        ]

    def row_of(self, segment: int) -> range:
        """The segments of the record that holds ``segment``, itself among them."""
        record = self.segment_record[segment]
        return range(int(self.record_starts[record]), int(self.record_starts[record + 1]))

    def language(self, segment: int) -> str:
        """The language of a segment."""
        return self.languages[self.segment_language[segment]]

    @cached_property
    def _rows(self) -> ArrowFile:
        return self._file(f"{self.name}.arrow")

    @cached_property
    def id_columns(self) -> tuple[Column, Column]:
        """(S + 1,) int64 where the ids of each segment begin, with the end of the last; (I,) int32 all ids."""
        return self._rows.lists("ids")

    @cached_property
    def _text(self) -> tuple[Column, Column]:
        return self._rows.lists("text")

    def _file(self, name: str) -> ArrowFile:
        return ArrowFile(self.folder / name, self._digests[name], remedy(self.folder))


class TokenStore:
    """A complete token store. Cheap to open, to pickle and to hold: nothing is read before it is used."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.languages: tuple[str, ...] = tuple(manifest["languages"])
        self.fingerprint: str = manifest["fingerprint"]
        self.tokenizer_folder = folder / "tokenizer"
        self.vocabulary_size: int = manifest["tokenizer"]["vocabulary_size"]
        digests = {name: file["digest"] for name, file in manifest["files"].items()}
        self.corpora: Mapping[str, Corpus] = MappingProxyType(
            {
                name: Corpus(folder, name, entry, self.languages, digests)
                for name, entry in manifest["corpora"].items()
            }
        )

    @classmethod
    def open(cls, folder: str | Path) -> TokenStore:
        """The store in `folder`; UserError if it is missing, incomplete, or not what its manifest says.

        Compares the sizes of all files, and the digests of what is not columns: those are checked where they are read.
        `verify` reads everything.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        for name, file in manifest["files"].items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != file["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes, not {file['bytes']}"
                raise UserError(f"{path} {state}: the token store is damaged; {remedy(folder)}")
        small = [
            name
            for name, file in manifest["files"].items()
            if not name.endswith(".arrow") and file["bytes"] <= COMPARED_AT_OPEN
        ]
        store = cls(folder, manifest)
        store._compare(small)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder, self.manifest)

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(file["bytes"] for file in self.manifest["files"].values())

    def ids_of_languages(self) -> np.ndarray:
        """(L, V) int64: how often every id stands in the training texts of every language."""
        digest = self.manifest["files"][IDS]["digest"]
        counts = ArrowFile(self.folder / IDS, digest, remedy(self.folder)).numbers("count")
        return np.asarray(counts).reshape(len(self.languages), self.vocabulary_size)

    def verify(self) -> None:
        """Reads every file and compares its digest; UserError names the damaged ones."""
        self._compare(self.manifest["files"])

    def _compare(self, names: Iterable[str]) -> None:
        files = self.manifest["files"]
        damaged = [name for name in names if digest_of_file(self.folder / name) != files[name]["digest"]]
        if damaged:
            listed = ", ".join(str(self.folder / name) for name in damaged)
            raise UserError(f"{listed}: not the bytes that were written; {remedy(self.folder)}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store, checked against its own digest."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
    except FileNotFoundError:
        what = "holds no token store" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: {what}; make one with: python -m data.prepare --recipe RECIPE") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can not be read ({error}); {remedy(folder)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: this is not the manifest of a token store; choose another folder")
    if manifest.get("version") != VERSION:
        made = f"version {manifest.get('version')}, this program reads version {VERSION}"
        raise UserError(f"{path}: a token store of {made}; {remedy(folder)}")
    # The digest is that of the values; what a reader of JSON passes over, such as a space, is compared as it stands.
    if manifest.get("digest") != _digest_of(manifest) or content != _written(manifest):
        raise UserError(f"{path}: the manifest was changed after it was written; {remedy(folder)}")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes manifest.json with its digest; the last thing that is written into a store."""
    whole = {"format": FORMAT, "version": VERSION, **manifest}
    whole["digest"] = _digest_of(whole)
    (folder / MANIFEST).write_bytes(_written(whole))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; "" if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def digest_of_values(values: Any) -> str:
    """SHA-256 of plain values, independent of the order of keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def remedy(folder: Path) -> str:
    """What to do about a store that can not be used."""
    return f"build {folder} again with: python -m data.prepare --recipe RECIPE --rebuild"


def _written(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return digest_of_values({key: value for key, value in manifest.items() if key != "digest"})
