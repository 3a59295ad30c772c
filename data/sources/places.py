"""Paths of a recipe -> the files behind them: one file, all that match a pattern, or all in a folder."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.config import CorpusConfig
from data.recipe import UserError


def files_of(path: str) -> list[Path]:
    """The files that stand behind a path of the recipe, in a fixed order."""
    place = Path(path)
    if is_pattern(path):
        files = sorted(file for file in map(Path, glob.glob(path, recursive=True)) if file.is_file())
    else:
        files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    for file in files:
        if not str(file).isprintable():  # it is listed in tables, and stands in the manifest
            raise UserError(f"{str(file)!r}: the name of this file can not be printed; rename it")
    return files


def files_of_corpus(config: CorpusConfig) -> list[Path]:
    """All files that a corpus reads."""
    return [file for path in config.files() for file in files_of(path)]


def is_pattern(path: str) -> bool:
    """Whether a path names files by a pattern; a file whose name looks like one is no pattern."""
    return glob.has_magic(path) and not Path(path).exists()


def parts_of(path: str) -> list[str]:
    """What is read one after another: the files of a pattern, or the path itself."""
    return [str(file) for file in files_of(path)] if is_pattern(path) else [path]


def side_by_side(config: CorpusConfig) -> Iterator[tuple[int, dict[str, str]]]:
    """(part, language -> file) of the parallel files of a corpus: those of its patterns in the order of their names."""
    files = {language: parts_of(path) for language, path in (config.paths or {}).items()}
    for part, row in enumerate(zip(*files.values(), strict=True)):
        yield part, dict(zip(files, row, strict=True))


def check_exists(path: str, key: str, form: str) -> None:
    """UserError if nothing that this format reads stands behind a path; ``key`` is the path's own in the recipe."""
    if is_pattern(path):
        if not files_of(path):
            raise UserError(f"{key}: no file matches {path}; paths start at {Path.cwd()}")
        return
    place = Path(path)
    if place.is_file() or (place.is_dir() and form == "huggingface"):
        return
    if place.is_dir():
        raise UserError(
            f"{key}: {path} is a folder; format {form} reads files: name one, or a pattern ({path}/*)"
        )
    names = sorted(entry.name for entry in place.parent.iterdir()) if place.parent.is_dir() else []
    nearest = difflib.get_close_matches(place.name, names, n=1)
    remedy = f"did you mean {place.parent / nearest[0]}?" if nearest else f"paths start at {Path.cwd()}"
    raise UserError(f"{key}: there is no file {path}; {remedy}")


def near(word: str | None, candidates: Sequence[str]) -> str:
    """The end of a message: which of the candidates was meant, if one is near."""
    found = difflib.get_close_matches(word or "", candidates, n=1)
    return f"; did you mean '{found[0]}'?" if found else ""
