"""Writing a token store: chunks go to one spool file a column, these become Arrow files of one record batch.

The spools are what bounds memory: nothing but the chunk in hand is held, and the Arrow file is written from
the mapped spools.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from data.encode import Chunk
from data.sources import Reject

COLUMNS = {
    "language": (np.uint16, pa.uint16()),
    "record": (np.int64, pa.int64()),
    "group": (np.uint64, pa.uint64()),  # first the number of the text itself
    "length": (np.int32, pa.int32()),
    "score": (np.float32, pa.float32()),
}


class CorpusWriter:
    """Collects the chunks of one corpus and writes its Arrow files."""

    def __init__(self, folder: Path, name: str, kind: str, held_out: bool) -> None:
        self.folder, self.name, self.kind, self.held_out = folder, name, kind, held_out
        self.records = self.segments = self.rejected = 0
        self._text_end = self._ids_end = 0
        self._codes: dict[str, int] = {}  # language -> provisional number, in the order of appearance
        self._sentences: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._truncated: Counter[str] = Counter()
        self._reasons: dict[bool, dict[str, Counter[str]]] = {
            True: defaultdict(Counter),
            False: defaultdict(Counter),
        }
        self._spool = folder / f"{name}.spool"
        self._spool.mkdir()
        self._files: dict[str, BinaryIO] = {}
        self._append("text_offsets", np.zeros(1, np.int64))
        self._append("ids_offsets", np.zeros(1, np.int64))
        self._append("start", np.zeros(1, np.int64))

    def add(self, chunk: Chunk) -> None:
        """Appends a chunk's records and counts."""
        for language in chunk.languages:
            self._codes.setdefault(language, len(self._codes))
        numbers = np.array([self._codes[language] for language in chunk.languages], np.uint16)
        records = np.arange(self.records, self.records + len(chunk.record_sizes), dtype=np.int64)
        self._append("language", numbers)
        self._append("record", np.repeat(records, chunk.record_sizes))
        self._append("group", chunk.numbers)
        self._append("joined", chunk.joined)
        self._append("length", chunk.lengths)
        self._append("text", np.frombuffer(chunk.text, np.uint8))
        self._append("text_offsets", self._text_end + np.cumsum(chunk.text_lengths, dtype=np.int64))
        self._append("ids", chunk.ids)
        self._append("ids_offsets", self._ids_end + np.cumsum(chunk.lengths, dtype=np.int64))
        self._append("start", self.segments + np.cumsum(chunk.record_sizes, dtype=np.int64))
        if chunk.scores is not None:
            self._append("score", chunk.scores)
        self.records += len(chunk.record_sizes)
        self.segments += len(chunk.languages)
        self._text_end += len(chunk.text)
        self._ids_end += len(chunk.ids)
        self._sentences.update(chunk.languages)
        for language, length in zip(chunk.languages, chunk.lengths.tolist(), strict=True):
            self._tokens[language] += length
        self._truncated.update(chunk.truncated)

    def reject(self, reject: Reject) -> None:
        """Counts a reject."""
        self.rejected += reject.whole_record
        self._reasons[reject.whole_record][reject.reason][reject.language] += 1

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages seen."""
        return tuple(self._codes)

    def reasons(self) -> dict[str, int]:
        """Rejected records by reason."""
        return {reason: counts.total() for reason, counts in sorted(self._reasons[True].items())}

    def texts(self) -> tuple[np.ndarray, np.ndarray]:
        """After the last chunk: the column of groups, which holds the texts' own numbers, to be changed in place; and
        whether each segment means the same as the one before it."""
        for file in self._files.values():
            file.close()
        return (
            np.memmap(self._spool / "group", np.uint64, "r+"),
            np.memmap(self._spool / "joined", bool, "r"),
        )

    def finish(self, languages: tuple[str, ...]) -> dict[str, Any]:
        """Writes the Arrow files with the store's language numbers; returns the manifest entry."""
        for file in self._files.values():
            file.close()
        self._renumber(languages)
        columns: dict[str, pa.Array] = {}
        for column in ("language", "record", "group", "length"):
            columns[column] = self._numbers(column, self.segments)
        if self.kind == "scored":
            columns["score"] = self._numbers("score", self.segments)
        ids = pa.Array.from_buffers(pa.int32(), self._ids_end, [None, self._mapped("ids")])
        columns["ids"] = pa.Array.from_buffers(
            pa.large_list(pa.int32()), self.segments, [None, self._mapped("ids_offsets")], children=[ids]
        )
        columns["text"] = pa.Array.from_buffers(
            pa.large_utf8(), self.segments, [None, self._mapped("text_offsets"), self._mapped("text")]
        )
        _write(self.folder / f"{self.name}.arrow", columns)
        start = pa.Array.from_buffers(pa.int64(), self.records + 1, [None, self._mapped("start")])
        _write(self.folder / f"{self.name}.records.arrow", {"start": start})
        del columns, ids, start  # the mapped spools
        shutil.rmtree(self._spool)
        return self._entry()

    def _entry(self) -> dict[str, Any]:
        def by_reason(whole: bool) -> dict[str, dict[str, int]]:
            return {
                reason: dict(sorted(counts.items()))
                for reason, counts in sorted(self._reasons[whole].items())
            }

        return {
            "kind": self.kind,
            "held_out": self.held_out,
            "read": self.records + self.rejected,
            "records": self.records,
            "rejected": self.rejected,
            "segments": self.segments,
            "tokens": self._ids_end,
            "languages": {
                language: {
                    "segments": self._sentences[language],
                    "tokens": self._tokens[language],
                    "truncated": self._truncated[language],
                }
                for language in sorted(self._codes)
            },
            "rejected_records": by_reason(True),  # reason -> language ("" where it is not known) -> count
            "dropped_texts": by_reason(False),  # single texts left out of records that were kept
        }

    def _renumber(self, languages: tuple[str, ...]) -> None:
        table = np.array([languages.index(language) for language in self._codes], np.uint16)
        numbers = np.memmap(self._spool / "language", np.uint16, "r+")
        for start in range(0, len(numbers), 1 << 20):
            numbers[start : start + (1 << 20)] = table[numbers[start : start + (1 << 20)]]
        numbers.flush()

    def _numbers(self, column: str, count: int) -> pa.Array:
        return pa.Array.from_buffers(COLUMNS[column][1], count, [None, self._mapped(column)])

    def _mapped(self, column: str) -> pa.Buffer:
        return pa.memory_map(str(self._spool / column)).read_buffer()

    def _append(self, column: str, values: np.ndarray) -> None:
        if column not in self._files:
            self._files[column] = (self._spool / column).open("wb")
        self._files[column].write(values.tobytes())


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
