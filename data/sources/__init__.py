"""Corpora on disk -> records, with everything that is not kept named by file, line and reason.

A file a format: text.py, rows.py (JSON Lines, TSV), tmx.py, po.py, parquet.py, hugging_face.py; judge.py makes records
of what they read, checks.py says beforehand what could not be read at all. Lines are split on b"\\n" alone:
str.splitlines and text mode also split on U+2028, form feed or a lone carriage return, and parallel files would slide
apart. For every corpus: read = kept + rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data.config import CorpusConfig
from data.lines import Advance
from data.sources.judge import Judge, Row
from data.sources.places import files_of, files_of_corpus, near
from data.sources.po import po_rows
from data.sources.rejects import REASONS, Item, Reject, Where
from data.sources.rows import json_rows, tsv_rows
from data.sources.text import read_text
from data.sources.tmx import tmx_rows

__all__ = [
    "REASONS",
    "Advance",
    "Item",
    "Reject",
    "Where",
    "files_of",
    "files_of_corpus",
    "near",
    "read_corpus",
]


def _table_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[Where, Row]]:
    from data.sources.hugging_face import table_rows  # Arrow, for those alone who have such a corpus

    return table_rows(config, advance)


# format -> its rows; plain text has none
ROWS: dict[str, Callable[[CorpusConfig, Advance], Iterator[tuple[Where, Row]]]] = {
    "jsonl": json_rows,
    "tsv": tsv_rows,
    "tmx": tmx_rows,
    "po": po_rows,
    "huggingface": _table_rows,
}


def read_corpus(
    config: CorpusConfig, maximum_characters: int, advance: Advance = lambda count: None
) -> Iterator[Item]:
    """The records of a corpus in the order of its files; what is not kept comes as Reject in its place."""
    judge = Judge(config, maximum_characters)
    if config.format == "text":
        yield from read_text(config, judge, advance)
        return
    for where, row in ROWS[config.format](config, advance):
        yield from judge.row(where, row)
