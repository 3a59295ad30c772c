"""A corpus' settings against its files, before the work: what would reject every record is said at once."""

from __future__ import annotations

import difflib
from itertools import islice
from pathlib import Path

from data.config import CorpusConfig
from data.lines import read_lines
from data.recipe import UserError
from data.sources import fields_of, json_rows, near, open_table

HEAD = 1000  # rows looked at to tell a wrong recipe from a few bad rows


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
        _checkfields_of(config, key)


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


def _checkfields_of(config: CorpusConfig, key: str) -> None:
    path = config.files()[0]
    if config.format == "huggingface":
        present = list(open_table(config)[0].names)
    else:
        rows = (
            row for _, row in islice(json_rows(config, lambda count: None), HEAD) if isinstance(row, dict)
        )
        present = sorted({field for row in rows for field in row})
    if not present:
        return  # nothing to compare with: the rejects of the preparation will say why
    wrong = [
        f"{key}.{name}: {path} has no field {field!r}; it has {', '.join(present)}{near(field, present)}"
        for field, name in fields_of(config).items()
        if field not in present
    ]
    if wrong:
        raise UserError("\n".join(wrong))
