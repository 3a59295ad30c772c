"""Corpora on disk -> records, with every line that is not kept named by file, line and reason.

Files are read as bytes and split on b"\\n" alone: str.splitlines and text mode also split on U+2028, form
feed or a lone carriage return, and parallel files would slide apart.
For every corpus: read = kept + rejected.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data.config import CorpusConfig
from data.lines import Advance, decoded_lines
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
    "left_out_language": "the recipe reads other languages of this corpus",
    "fewer_than_two_languages": "a translation needs texts in two languages",
    "wrong_scores": "not one score for the positive and one for each negative",
}
# train-00000-of-00002.parquet, or train.parquet
SHARD = re.compile(r"(?P<split>.+)-\d+-of-\d+|(?P<whole>train|validation|valid|dev|test)")
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
    rows = {"jsonl": json_rows, "tsv": _tsv_rows, "huggingface": _table_rows}[config.format](config, advance)
    for line, row in rows:
        if isinstance(row, str):
            yield Reject(path, line, row)
        else:
            yield from judge.row(path, line, row)


def files_of(path: str) -> list[Path]:
    """The files that stand behind a path of the recipe: itself, or all in the folder, in a fixed order."""
    place = Path(path)
    return sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]


# ---- rows: one mapping a record, or the reason why there is none ----------------------------------------

Row = dict[str, Any] | str


def json_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[int, Row]]:
    """(line, object) of a JSON Lines file, or the reason why the line is none."""
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
    _, batches, rows = open_table(config)
    size = sum(file.stat().st_size for file in files_of(config.files()[0]))
    number = 0
    while True:
        try:
            batch = next(batches, None)
            found = [] if batch is None else batch.to_pylist()
        except (OSError, pa.ArrowException, ValueError) as error:  # not a fault of the store that is written
            reason = _first_line(error)
            raise UserError(
                f"{config.files()[0]}: damaged after row {number}: {reason}; fetch or write it again"
            ) from None
        if batch is None:
            return
        for row in found:
            number += 1
            yield number, row
        advance(size * len(found) // max(rows, 1))


def open_table(config: CorpusConfig) -> tuple[pa.Schema, Iterator[Any], int]:
    """(schema, batches, number of rows) of a Parquet file, a folder of them, or a folder of save_to_disk.

    UserError if it is none of these, or has several splits and the recipe names none of them.
    """
    path = Path(config.files()[0])
    shards = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    try:
        if shards:
            return _open_parquet(config, path, shards)
        import datasets  # here, because it takes a second and few corpora need it

        opened = datasets.load_from_disk(str(path))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: neither Parquet (a file, or a folder of *.parquet) nor a folder of "
            f"datasets.save_to_disk: {_first_line(error)}"
        ) from None
    if isinstance(opened, datasets.DatasetDict):
        opened = opened[_split(config, path, list(opened))]
    schema = opened.features.arrow_schema
    opened = opened.select_columns([name for name in opened.column_names if name in fields_of(config)])
    return schema, opened.with_format("arrow").iter(batch_size=1024), len(opened)


def _open_parquet(
    config: CorpusConfig, path: Path, shards: Sequence[Path]
) -> tuple[pa.Schema, Iterator[Any], int]:
    splits = sorted({_split_of(shard) for shard in shards} - {""})
    if path.is_dir() and (config.split is not None or len(splits) > 1):
        split = _split(config, path, splits)
        shards = [shard for shard in shards if _split_of(shard) == split]
    schema, rows = None, 0
    for shard in shards:
        with pyarrow.parquet.ParquetFile(shard) as parquet:
            schema = schema or parquet.schema_arrow
            missing = set(schema.names) & set(fields_of(config)) - set(parquet.schema_arrow.names)
            rows += parquet.metadata.num_rows
        if missing:
            raise UserError(f"{shard}: has no field {', '.join(sorted(missing))}, unlike {shards[0]}")
    return schema, _batches(config, shards), rows


def _batches(config: CorpusConfig, shards: Sequence[Path]) -> Iterator[Any]:
    for shard in shards:
        with pyarrow.parquet.ParquetFile(shard) as parquet:
            wanted = [name for name in parquet.schema_arrow.names if name in fields_of(config)]
            yield from parquet.iter_batches(batch_size=1024, columns=wanted)


def _split_of(shard: Path) -> str:
    """The split in the name of a Parquet file, as the Hugging Face hub writes it; "" if it names none."""
    found = SHARD.fullmatch(shard.stem)
    return (found["split"] or found["whole"]) if found else ""


def _split(config: CorpusConfig, path: Path, splits: Sequence[str]) -> str:
    """The split to read of those in a folder; UserError if the recipe must name one and does not."""
    if config.split is None and len(splits) == 1:
        return splits[0]
    if config.split is None or config.split not in splits:
        given = f"there is no split {config.split!r}" if config.split else "the key 'split' is needed"
        listed = f"it has the splits {', '.join(splits)}" if splits else "its files name no splits"
        raise UserError(f"{path}: {given}; {listed}{near(config.split, splits)}")
    return config.split


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def fields_of(config: CorpusConfig) -> dict[str, str]:
    """field of a row -> the key of the recipe that names it"""
    if config.fields is not None:
        return {field: f"fields.{language}" for language, field in config.fields.items()}
    keys = ("translations", "text", "anchor", "positive", "negatives", "scores")
    found = {getattr(config, key): key for key in keys if getattr(config, key) is not None}
    if config.language is not None and config.language.field is not None:
        found[config.language.field] = "language.field"
    if config.candidates_language is not None and config.candidates_language.field is not None:
        found[config.candidates_language.field] = "candidates_language.field"
    return found


def near(word: str | None, candidates: Sequence[str]) -> str:
    """The end of a message: which of the candidates was meant, if one is near."""
    found = difflib.get_close_matches(word or "", candidates, n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


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
        wanted = texts if config.languages is None else config.languages
        return [
            (language, path, text)
            for language, text in texts.items()
            if text is not None and language in wanted
        ]

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
        candidates = self._language(row, of_candidates=True) if self.config.candidates_language else None
        if isinstance(candidates, _Bad):
            return candidates.reason, language
        names = (self.config.anchor, self.config.positive, self.config.negatives, self.config.scores)
        anchor, positive, negatives, scores = (row.get(name or "", _Bad("missing_field")) for name in names)
        negatives = [negatives] if isinstance(negatives, str) else negatives
        if self.config.scores is None and isinstance(negatives, list):
            scores = [math.nan] * (1 + len(negatives))
        for value in (negatives, scores):
            if not isinstance(value, list):
                return (value.reason if isinstance(value, _Bad) else "unknown_kind_of_value"), language
        problem = next(filter(None, map(self.problem, (anchor, positive, *negatives))), "")
        if problem:
            return problem, language
        if any(isinstance(score, bool) or not isinstance(score, int | float) for score in scores):
            return "unknown_kind_of_value", language
        fine = self.config.scores is None or all(abs(s) < 1e30 for s in scores)
        if not negatives or len(scores) != 1 + len(negatives) or not fine:
            return "wrong_scores", language
        others = tuple(text.strip() for text in negatives)
        given = tuple(map(float, scores))
        return ScoredTriplet(language, anchor.strip(), positive.strip(), others, given, candidates)

    def _language(self, row: dict[str, Any], *, of_candidates: bool = False) -> str | _Bad:
        setting = self.config.candidates_language if of_candidates else self.config.language
        if setting is not None and setting.code is not None:
            return setting.code
        language = row.get("language" if self.config.columns else (setting and setting.field) or "")
        if language is None:
            return _Bad("missing_field")
        if not isinstance(language, str) or not LANGUAGE.fullmatch(language):
            return _Bad("bad_language")
        wanted = self.config.languages
        return language if wanted is None or language in wanted else _Bad("left_out_language")


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
