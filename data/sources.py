"""Corpora on disk -> records, with every line that is not kept named by file, line and reason.

Files are read as bytes and split on b"\\n" alone: str.splitlines and text mode also split on U+2028, form
feed or a lone carriage return, and parallel files would slide apart.
For every corpus: read = kept + rejected.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data.config import CorpusConfig
from data.lines import Advance, decoded_lines, read_lines
from data.recipe import UserError
from data.records import Record, ScoredTriplet, Sentence, TranslationPair

REASONS = {
    "invalid_utf8": "the line is not UTF-8",
    "empty": "there is no text, or nothing is left of it after normalisation",
    "too_long": "more characters than maximum_characters",
    "wrong_columns": "the line does not have the columns that the recipe names",
    "bad_json": "the line is not a JSON object",
    "missing_field": "the row lacks a field that the recipe names",
    "unknown_kind_of_value": "the value is no text (or no list of texts, no number) where one is expected",
    "bad_language": "the value is no language code",
    "fewer_than_two_languages": "a translation needs texts in two languages",
    "wrong_scores": "not one score for the positive and one for each negative",
}
HEAD = 1000  # rows looked at to tell a wrong recipe from a few bad rows
LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that was read and not kept: a whole record, or one text of a record that is kept."""

    file: str
    line: int  # counted from 1
    reason: str  # a key of REASONS
    language: str = ""  # where it is known
    whole_record: bool = True


Item = tuple[int, Record] | Reject  # a kept record comes with its line


def read_corpus(
    config: CorpusConfig, maximum_characters: int, advance: Advance = lambda count: None
) -> Iterator[Item]:
    """The records of a corpus in the order of its files; what is not kept comes as Reject in its place."""
    judge = _Judge(config, maximum_characters)
    if config.format == "text":
        yield from _read_text(config, judge, advance)
        return
    path = config.files()[0]
    rows = {"jsonl": _json_rows, "tsv": _tsv_rows, "huggingface": _table_rows}[config.format](config, advance)
    for line, row in rows:
        if isinstance(row, str):
            yield Reject(path, line, row)
        else:
            yield from judge.row(path, line, row)


def check_corpus(config: CorpusConfig, key: str) -> None:
    """Finds what would reject every record of a corpus; UserError names the file, the key and a remedy.

    key: path of the corpus in the recipe ("corpora.news"), for the message.
    """
    named = config.paths or {"": config.path or ""}
    for language, path in named.items():
        _check_exists(path, f"{key}.paths.{language}" if language else f"{key}.path", config.format)
    if config.format == "text":
        _check_equal_lengths(config.files())
    elif config.format == "tsv":
        _check_columns(config, key)
    else:
        _check_fields(config, key)


def files_of(path: str) -> list[Path]:
    """The files that stand behind a path of the recipe: itself, or all in the folder, in a fixed order."""
    place = Path(path)
    return sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]


# ---- rows: one mapping a record, or the reason why there is none ----------------------------------------

Row = dict[str, Any] | str


def _json_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[int, Row]]:
    for number, text, reason in decoded_lines(config.files()[0], advance):
        if reason or not text.strip():
            yield number, reason or "empty"
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        yield number, value if isinstance(value, dict) else "bad_json"


def _tsv_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[int, Row]]:
    columns = config.columns or ()
    for number, text, reason in decoded_lines(config.files()[0], advance):
        cells = text.split("\t")
        if reason or not text.strip():
            yield number, reason or "empty"
        elif len(cells) != len(columns):
            yield number, "wrong_columns"
        else:
            yield number, {column: cell for column, cell in zip(columns, cells, strict=True) if column != "_"}


def _table_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[int, Row]]:
    schema, batches, rows = _open_table(config)
    size = sum(file.stat().st_size for file in files_of(config.files()[0]))
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, row
        advance(size * batch.num_rows // max(rows, 1))


def _open_table(config: CorpusConfig) -> tuple[pa.Schema, Iterator[Any], int]:
    """(schema, batches, number of rows) of a Parquet file or of a folder written by save_to_disk."""
    path = Path(config.files()[0])
    try:
        if path.is_file():
            parquet = pyarrow.parquet.ParquetFile(path)
            wanted = [name for name in parquet.schema_arrow.names if name in _fields(config)]
            batches = parquet.iter_batches(batch_size=1024, columns=wanted)
            return parquet.schema_arrow, batches, parquet.metadata.num_rows
        import datasets  # here, because it takes a second and few corpora need it

        opened = datasets.load_from_disk(str(path))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: neither a Parquet file nor a folder of datasets.save_to_disk: {reason}"
        ) from None
    if isinstance(opened, datasets.DatasetDict):
        splits = list(opened)
        if config.split is None and len(splits) == 1:
            opened = opened[splits[0]]
        elif config.split not in opened:
            given = f"there is no split {config.split!r}" if config.split else "the key 'split' is needed"
            raise UserError(
                f"{path}: {given}; it has the splits {', '.join(splits)}{_near(config.split, splits)}"
            )
        else:
            opened = opened[config.split]
    schema = opened.features.arrow_schema
    opened = opened.select_columns([name for name in opened.column_names if name in _fields(config)])
    return schema, opened.with_format("arrow").iter(batch_size=1024), len(opened)


def _fields(config: CorpusConfig) -> dict[str, str]:
    """field of a row -> the key of the recipe that names it"""
    if config.fields is not None:
        return {field: f"fields.{language}" for language, field in config.fields.items()}
    keys = ("translations", "text", "anchor", "positive", "negatives", "scores")
    found = {getattr(config, key): key for key in keys if getattr(config, key) is not None}
    if config.language is not None and config.language.field is not None:
        found[config.language.field] = "language.field"
    return found


# ---- records --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Judge:
    """Makes a record of a row, or says why not."""

    config: CorpusConfig
    maximum_characters: int

    def row(self, path: str, line: int, row: dict[str, Any]) -> Iterator[Item]:
        if self.config.kind == "parallel":
            yield from self.translations(line, self._texts_of(path, row))
            return
        made = self._sentence(row) if self.config.kind == "monolingual" else self._triplet(row)
        yield Reject(path, line, *made) if isinstance(made, tuple) else (line, made)

    def translations(self, line: int, texts: list[tuple[str, str, Any]]) -> Iterator[Item]:
        """texts: (language, file, text or anything else). Bad texts are left out as long as two remain."""
        good: list[tuple[str, str]] = []
        bad: list[Reject] = []
        for language, file, text in texts:
            problem = self.problem(text) if LANGUAGE.fullmatch(language) else "bad_language"
            if problem:
                bad.append(Reject(file, line, problem, language, whole_record=False))
            else:
                good.append((language, text.strip()))
        if len(good) >= 2:
            yield from bad
            yield line, TranslationPair(tuple(good))
        elif bad:
            yield Reject(bad[0].file, line, bad[0].reason, bad[0].language)
        else:
            yield Reject(self.config.files()[0], line, "fewer_than_two_languages")

    def problem(self, text: Any) -> str:
        """The reason to refuse a text, or ""."""
        if isinstance(text, _Bad):
            return text.reason
        if not isinstance(text, str):
            return "unknown_kind_of_value"
        if len(text) > self.maximum_characters:
            return "too_long"
        if not text.strip():
            return "empty"
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair, written as \ud800 in JSON
            return "invalid_utf8"
        return ""

    def _texts_of(self, path: str, row: dict[str, Any]) -> list[tuple[str, str, Any]]:
        config = self.config
        if config.fields is not None:
            missing = _Bad("missing_field")
            return [(language, path, row.get(field, missing)) for language, field in config.fields.items()]
        if config.columns is not None:
            return [(language, path, text) for language, text in row.items()]
        texts = row.get(config.translations or "", _Bad("missing_field"))
        if not isinstance(texts, dict):
            return [("und", path, texts if isinstance(texts, _Bad) else _Bad("unknown_kind_of_value"))]
        return [(language, path, text) for language, text in texts.items() if text is not None]

    def _sentence(self, row: dict[str, Any]) -> Sentence | tuple[str, str]:
        language = self._language(row)
        if isinstance(language, _Bad):
            return language.reason, ""
        text = row.get("text" if self.config.columns else self.config.text or "", _Bad("missing_field"))
        problem = self.problem(text)
        return (problem, language) if problem else Sentence(language, text.strip())

    def _triplet(self, row: dict[str, Any]) -> ScoredTriplet | tuple[str, str]:
        language = self._language(row)
        if isinstance(language, _Bad):
            return language.reason, ""
        names = (self.config.anchor, self.config.positive, self.config.negatives, self.config.scores)
        anchor, positive, negatives, scores = (row.get(name or "", _Bad("missing_field")) for name in names)
        negatives = [negatives] if isinstance(negatives, str) else negatives
        for value in (negatives, scores):
            if not isinstance(value, list):
                return (value.reason if isinstance(value, _Bad) else "unknown_kind_of_value"), language
        problem = next(filter(None, map(self.problem, (anchor, positive, *negatives))), "")
        if problem:
            return problem, language
        if any(isinstance(score, bool) or not isinstance(score, int | float) for score in scores):
            return "unknown_kind_of_value", language
        if not negatives or len(scores) != 1 + len(negatives) or not all(abs(s) < 1e30 for s in scores):
            return "wrong_scores", language
        others = tuple(text.strip() for text in negatives)
        return ScoredTriplet(language, anchor.strip(), positive.strip(), others, tuple(map(float, scores)))

    def _language(self, row: dict[str, Any]) -> str | _Bad:
        setting = self.config.language
        if setting is not None and setting.code is not None:
            return setting.code
        language = row.get("language" if self.config.columns else (setting and setting.field) or "")
        if language is None:
            return _Bad("missing_field")
        fine = isinstance(language, str) and LANGUAGE.fullmatch(language)
        return language if fine else _Bad("bad_language")


@dataclass(frozen=True, slots=True)
class _Bad:
    """Stands where a text should stand, with the reason why there is none."""

    reason: str


def _read_text(config: CorpusConfig, judge: _Judge, advance: Advance) -> Iterator[Item]:
    if config.kind == "monolingual":
        path, language = config.path or "", (config.language and config.language.code) or ""
        for number, text, reason in decoded_lines(path, advance):
            problem = reason or judge.problem(text)
            made = Sentence(language, text.strip())
            yield Reject(path, number, problem, language) if problem else (number, made)
        return
    paths = config.paths or {}
    for lines in zip(*(decoded_lines(path, advance) for path in paths.values()), strict=True):
        texts = [
            (language, path, _Bad(reason) if reason else text)
            for (language, path), (_, text, reason) in zip(paths.items(), lines, strict=True)
        ]
        yield from judge.translations(lines[0][0], texts)


# ---- checks before the work -----------------------------------------------------------------------------


def _check_exists(path: str, key: str, form: str) -> None:
    place = Path(path)
    if place.is_file() or (place.is_dir() and form == "huggingface"):
        return
    if place.is_dir():
        raise UserError(f"{key}: {path} is a folder; format {form} reads one file")
    names = sorted(entry.name for entry in place.parent.iterdir()) if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, names, n=1)
    remedy = f"did you mean {place.parent / near[0]}?" if near else f"paths start at {Path.cwd()}"
    raise UserError(f"{key}: there is no file {path}; {remedy}")


def _check_equal_lengths(files: tuple[str, ...]) -> None:
    counts = [sum(1 for _ in read_lines(file)) for file in files]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{file} has {count} lines" for file, count in zip(files, counts, strict=True))
        raise UserError(f"parallel files must have the same number of lines: {listed}")


def _check_columns(config: CorpusConfig, key: str) -> None:
    path = config.files()[0]
    widths = [len(line.split(b"\t")) for line in islice(read_lines(path), HEAD) if line and line.strip()]
    wanted = len(config.columns or ())
    if widths and wanted not in widths:
        usual = max(set(widths), key=widths.count)
        raise UserError(
            f"{key}.columns: {wanted} columns are named ({', '.join(config.columns or ())}), the lines of "
            f"{path} have {usual}; name every column, '_' for one to ignore"
        )


def _check_fields(config: CorpusConfig, key: str) -> None:
    path = config.files()[0]
    if config.format == "huggingface":
        present = list(_open_table(config)[0].names)
    else:
        rows = (
            row for _, row in islice(_json_rows(config, lambda count: None), HEAD) if isinstance(row, dict)
        )
        present = sorted({field for row in rows for field in row})
    if not present:
        return  # nothing to compare with: the rejects of the preparation will say why
    wrong = [
        f"{key}.{name}: {path} has no field {field!r}; it has {', '.join(present)}{_near(field, present)}"
        for field, name in _fields(config).items()
        if field not in present
    ]
    if wrong:
        raise UserError("\n".join(wrong))


def _near(word: str | None, candidates: list[str]) -> str:
    near = difflib.get_close_matches(word or "", candidates, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
