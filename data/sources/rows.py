"""JSON Lines and TSV: a row a line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from data.config import CorpusConfig
from data.lines import Advance, decoded_lines
from data.sources.judge import Row
from data.sources.places import parts_of
from data.sources.rejects import Where


def json_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[Where, Row]]:
    """The object of every line, or the reason why the line is none."""
    for where, text, reason in _lines(config, advance):
        if reason:
            yield where, reason
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        yield where, value if isinstance(value, dict) else "bad_json"


def tsv_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[Where, Row]]:
    """The columns of every line that the recipe names."""
    columns = config.columns or ()
    for where, text, reason in _lines(config, advance):
        cells = text.split("\t")
        if reason:
            yield where, reason
        elif len(cells) != len(columns):
            yield where, "wrong_columns"
        else:
            yield where, {column: cell for column, cell in zip(columns, cells, strict=True) if column != "_"}


def _lines(config: CorpusConfig, advance: Advance) -> Iterator[tuple[Where, str, str]]:
    """(place, text, reason for a reject or "") of every line of a corpus."""
    for part, path in enumerate(parts_of(config.path or "")):
        for number, start, text, reason in decoded_lines(path, advance):
            yield Where(part, number, path, start), text, reason or ("" if text.strip() else "empty")
