"""A corpus' settings against its files, before the work: what would reject every record is said at once."""

from __future__ import annotations

from itertools import islice

from data.config import CorpusConfig
from data.lines import read_lines
from data.recipe import UserError
from data.sources.hugging_face import columns_of
from data.sources.judge import fields_of
from data.sources.places import check_exists, near, parts_of, side_by_side
from data.sources.rows import json_rows

HEAD = 1000  # rows looked at to tell a wrong recipe from a few bad rows


def check_corpus(config: CorpusConfig, key: str) -> None:
    """Finds what would reject every record of a corpus; UserError names the file, the key and a remedy.

    key: path of the corpus in the recipe ("corpora.news"), for the message.
    """
    for language, path in (config.paths or {}).items():
        check_exists(path, f"{key}.paths.{language}", config.format)
    if config.path is not None:
        check_exists(config.path, f"{key}.path", config.format)
    if config.format == "text" and config.kind == "parallel":
        _check_equal_numbers(config, key)
        for _, paths in side_by_side(config):
            _check_equal_lengths(tuple(paths.values()))
    elif config.format == "tsv":
        for path in parts_of(config.path or ""):
            _check_columns(config, path, key)
    elif config.format in ("jsonl", "huggingface"):
        _check_fields(config, key)


def _check_equal_numbers(config: CorpusConfig, key: str) -> None:
    found = {path: len(parts_of(path)) for path in config.files()}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{path} has {count}" for path, count in found.items())
        raise UserError(f"{key}.paths: parallel patterns must match the same number of files: {listed}")


def _check_equal_lengths(files: tuple[str, ...]) -> None:
    counts = [sum(1 for _ in read_lines(file)) for file in files]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{file} has {count} lines" for file, count in zip(files, counts, strict=True))
        raise UserError(f"parallel files must have the same number of lines: {listed}")


def _check_columns(config: CorpusConfig, path: str, key: str) -> None:
    widths = [len(line.split(b"\t")) for _, line in islice(read_lines(path), HEAD) if line and line.strip()]
    wanted = len(config.columns or ())
    if widths and wanted not in widths:
        usual = max(set(widths), key=widths.count)
        raise UserError(
            f"{key}.columns: {wanted} columns are named ({', '.join(config.columns or ())}), the lines of "
            f"{path} have {usual}; name every column, '_' for one to ignore"
        )


def _check_fields(config: CorpusConfig, key: str) -> None:
    if config.format == "huggingface":
        present = columns_of(config)
    else:
        rows = (
            row for _, row in islice(json_rows(config, lambda count: None), HEAD) if isinstance(row, dict)
        )
        present = sorted({field for row in rows for field in row})
    if not present:
        return  # nothing to compare with: the rejects of the preparation will say why
    place = config.path or f"hub:{config.hub}"
    wrong = [
        f"{key}.{name}: {place} has no field {field!r}; it has {', '.join(present)}{near(field, present)}"
        for field, name in fields_of(config).items()
        if field not in present
    ]
    if wrong:
        raise UserError("\n".join(wrong))
