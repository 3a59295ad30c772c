"""Writing one corpus of a store: chunks go to spools, one file a column, and these become Arrow files.

Nothing but the chunk in hand is held. A writer that is opened again goes on after the last chunk that was noted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.arrow_writer import MappedColumns
from data.encode import Chunk
from data.journal import Journal
from data.recipe import UserError
from data.sources import Reject
from data.spool import Spool, rows_of

MOST_LANGUAGES = 1 << 16
SEGMENTS_AT_A_TIME = 1 << 12  # when ids are counted: of segments of 512 ids two millions


class CorpusWriter:
    """Collects the chunks of one corpus and writes its Arrow files."""

    def __init__(self, work: Path, name: str, kind: str, held_out: bool) -> None:
        self.name, self.kind, self.held_out = name, kind, held_out
        self._journal = Journal(work / f"{name}.json")
        state = self._journal.state
        self._spool = Spool(work / name, state.get("sizes"))
        self.complete: bool = state.get("complete", False)  # nothing more is to be read
        self.items: int = state.get("items", 0)  # records and rejects of the source that were read
        self.records: int = state.get("records", 0)
        self.rejected: int = state.get("rejected", 0)
        self._codes = {language: code for code, language in enumerate(state.get("codes", ()))}
        self._segments: Counter[str] = Counter(state.get("segments"))
        self._tokens: Counter[str] = Counter(state.get("tokens"))
        self._truncated: Counter[str] = Counter(state.get("truncated"))
        self._lost = {  # whole records, single texts: reason -> language -> count
            whole: defaultdict(Counter, {reason: Counter(of) for reason, of in state.get(key, {}).items()})
            for whole, key in ((True, "rejected_records"), (False, "dropped_texts"))
        }
        if not state:
            for column in ("text_ends", "ids_ends", "start"):
                self._spool.append(column, np.zeros(1, np.int64))
            self._spool.append("rejects", b"")

    def add(self, chunk: Chunk, rejects: Sequence[Reject], items: int) -> None:
        """Appends a chunk: its records, everything that was lost on its way, and how much of the source it was."""
        codes = np.array([self._code_of(language) for language in chunk.languages], np.uint16)
        segments = self._spool.size("code") // 2
        sizes = np.cumsum(chunk.record_sizes, dtype=np.int64)
        records = np.arange(self.records, self.records + len(sizes), dtype=np.int64)
        self._spool.append("code", codes)
        self._spool.append("record", np.repeat(records, chunk.record_sizes))
        self._spool.append("number", chunk.numbers)
        self._spool.append("joined", chunk.joined)
        self._spool.append("length", chunk.lengths)
        text_end, ids_end = self._spool.size("text"), self._spool.size("ids") // 4
        self._spool.append("text_ends", text_end + np.cumsum(chunk.text_lengths, dtype=np.int64))
        self._spool.append("ids_ends", ids_end + np.cumsum(chunk.lengths, dtype=np.int64))
        self._spool.append("text", chunk.text)
        self._spool.append("ids", chunk.ids)
        self._spool.append("start", segments + sizes)
        if chunk.scores is not None:
            self._spool.append("score", chunk.scores)
        self._count(chunk, codes)
        for reject in rejects:
            self.rejected += reject.whole_record
            self._lost[reject.whole_record][reject.reason][reject.language] += 1
        self._spool.append("rejects", "".join(_row(self.name, reject) for reject in rejects).encode())
        self.records += len(sizes)
        self.items += items
        if self._journal.due:
            self._note()

    def close(self) -> None:
        """Nothing more is to be read."""
        if not self.complete:
            self.complete = True
            self._note()

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages seen."""
        return tuple(self._codes)

    def reasons(self) -> dict[str, int]:
        """Rejected records by reason."""
        return {reason: counts.total() for reason, counts in sorted(self._lost[True].items())}

    def file(self, column: str) -> Path:
        """The spool of a column: "number" (of each text), "joined", "group" (to be written), "rejects" ..."""
        return self._spool.path(column)

    def count_ids(self, counts: np.ndarray, languages: Sequence[str]) -> None:
        """Adds to (L, V) int64 how often each id stands in the texts of each of the ``languages``."""
        flat, width = counts.reshape(-1), counts.shape[1]
        starts = self._codes_in(languages).astype(np.int64) * width
        with self.file("ids").open("rb") as ids:
            for codes, lengths in zip(
                rows_of(self.file("code"), np.uint16, SEGMENTS_AT_A_TIME),
                rows_of(self.file("length"), np.int32, SEGMENTS_AT_A_TIME),
                strict=True,
            ):
                tokens = np.fromfile(ids, np.int32, int(lengths.sum()))
                np.add.at(flat, np.repeat(starts[codes], lengths) + tokens, 1)

    def write(self, folder: Path, languages: Sequence[str]) -> dict[str, Any]:
        """Writes the Arrow files, with the numbers of the store's languages; returns the manifest entry."""
        table = self._codes_in(languages)
        with self.file("language").open("wb") as file:
            for codes in rows_of(self.file("code"), np.uint16):
                file.write(table[codes].data)
        with MappedColumns() as mapped:
            columns = {
                "language": mapped.numbers(self.file("language"), pa.uint16()),
                "record": mapped.numbers(self.file("record"), pa.int64()),
                "group": mapped.numbers(self.file("group"), pa.uint64()),
                "length": mapped.numbers(self.file("length"), pa.int32()),
            }
            if self.kind == "scored":
                columns["score"] = mapped.numbers(self.file("score"), pa.float32())
            columns["ids"] = mapped.lists(self.file("ids_ends"), self.file("ids"), pa.int32())
            columns["text"] = mapped.texts(self.file("text_ends"), self.file("text"))
            mapped.write(folder / f"{self.name}.arrow", columns)
            start = {"start": mapped.numbers(self.file("start"), pa.int64())}
            mapped.write(folder / f"{self.name}.records.arrow", start)
        return self._entry()

    def _code_of(self, language: str) -> int:
        code = self._codes.setdefault(language, len(self._codes))
        if code >= MOST_LANGUAGES:
            raise UserError(
                f"corpora.{self.name}: more than {MOST_LANGUAGES:,} languages, {language} among them; look which field"
                " holds the language"
            )
        return code

    def _codes_in(self, languages: Sequence[str]) -> np.ndarray:
        numbers = {language: number for number, language in enumerate(languages)}
        return np.array([numbers[language] for language in self._codes], np.uint16)

    def _count(self, chunk: Chunk, codes: np.ndarray) -> None:
        segments = np.bincount(codes, minlength=len(self._codes)).tolist()
        tokens = np.bincount(codes, chunk.lengths, len(self._codes)).astype(np.int64).tolist()
        self._segments.update(dict(zip(self._codes, segments, strict=True)))
        self._tokens.update(dict(zip(self._codes, tokens, strict=True)))
        self._truncated.update(chunk.truncated)

    def _note(self) -> None:
        self._journal.note(
            {
                "complete": self.complete,
                "items": self.items,
                "records": self.records,
                "rejected": self.rejected,
                "codes": list(self._codes),
                "segments": self._segments,
                "tokens": self._tokens,
                "truncated": self._truncated,
                "rejected_records": self._lost[True],
                "dropped_texts": self._lost[False],
                "sizes": self._spool.sizes(),
            }
        )

    def _entry(self) -> dict[str, Any]:
        def by_reason(whole: bool) -> dict[str, dict[str, int]]:
            return {
                reason: dict(sorted(counts.items())) for reason, counts in sorted(self._lost[whole].items())
            }

        return {
            "kind": self.kind,
            "held_out": self.held_out,
            "read": self.records + self.rejected,
            "records": self.records,
            "rejected": self.rejected,
            "segments": self._segments.total(),
            "tokens": self._tokens.total(),
            "languages": {
                language: {
                    "segments": self._segments[language],
                    "tokens": self._tokens[language],
                    "truncated": self._truncated[language],
                }
                for language in sorted(self._codes)
            },
            "rejected_records": by_reason(True),  # reason -> language ("" where it is not known) -> count
            "dropped_texts": by_reason(False),  # single texts left out of records that were kept
        }


def _row(corpus: str, reject: Reject) -> str:
    file = reject.file.replace("\t", " ").replace("\n", " ")
    lost = "record" if reject.whole_record else "text"
    byte = reject.where.byte if reject.where.byte >= 0 else ""
    return f"{corpus}\t{file}\t{reject.line}\t{byte}\t{reject.reason}\t{reject.language}\t{lost}\n"
