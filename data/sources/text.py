"""Plain text: a record a line, or a document up to an empty line; parallel files side by side.

A document is one text that keeps its lines: each is a sentence of it, and who wants sentences (data/mixing.py) has them
as they were given. To the tokenizer the end of a line is a space.
"""

from __future__ import annotations

from collections.abc import Iterator

from data.config import CorpusConfig
from data.lines import Advance, decoded_lines
from data.records import Sentence
from data.sources.judge import Bad, Judge
from data.sources.places import parts_of, side_by_side
from data.sources.rejects import Item, Reject, Where

Line = tuple[Where, str, str]  # place, text, reason for a reject or ""
Row = dict[str, Line]  # language -> its line; of monolingual text with one language


def read_text(config: CorpusConfig, judge: Judge, advance: Advance) -> Iterator[Item]:
    """The records of plain text files."""
    for rows in _files(config, advance):
        if config.document_characters is not None:
            yield from _documents(rows, config.document_characters, judge)
        elif config.kind == "parallel":
            for row in rows:
                texts = [
                    (language, where, Bad(reason) if reason else text)
                    for language, (where, text, reason) in row.items()
                ]
                yield from judge.translations(texts, texts[0][1])
        else:
            for row in rows:
                for language, (where, text, reason) in row.items():
                    problem = reason or judge.problem(text)
                    yield (
                        Reject(where, problem, language)
                        if problem
                        else (where, Sentence(language, text.strip()))
                    )


def _files(config: CorpusConfig, advance: Advance) -> Iterator[Iterator[Row]]:
    """The rows of each file, or of each row of parallel files."""
    if config.kind == "monolingual":
        language = (config.language and config.language.code) or ""
        for part, path in enumerate(parts_of(config.path or "")):
            yield _side_by_side(part, {language: path}, advance)
    else:
        for part, paths in side_by_side(config):
            yield _side_by_side(part, paths, advance)


def _side_by_side(part: int, paths: dict[str, str], advance: Advance) -> Iterator[Row]:
    for lines in zip(*(decoded_lines(path, advance) for path in paths.values()), strict=True):
        yield {
            language: (Where(part, number, path, start), text, reason)
            for (language, path), (number, start, text, reason) in zip(paths.items(), lines, strict=True)
        }


# ---- documents ------------------------------------------------------------------------------------------


def _documents(rows: Iterator[Row], most: int, judge: Judge) -> Iterator[Item]:
    """Records of consecutive lines; an empty line, in any of the languages, ends a document and is not read.

    A line that is no text in one language is left out in all, so that the sentences of translations keep their numbers.
    """
    document: list[Row] = []
    held = 0
    for row in rows:
        bare = [language for language, (_, text, reason) in row.items() if not (text.strip() or reason)]
        if bare:
            yield from _record(document, judge)
            document, held = [], 0
            if len(bare) < len(row):
                yield Reject(row[bare[0]][0], "empty", bare[0])
            continue
        longest = max(len(text) + 1 for _, text, _ in row.values())
        if document and held + longest > most:
            yield from _record(document, judge)
            document, held = [], 0
        document.append(row)
        held += longest
    yield from _record(document, judge)


def _record(document: list[Row], judge: Judge) -> Iterator[Item]:
    """The record of some lines, or a reject for all of them."""
    if not document:
        return
    good, bad = [], []
    for row in document:
        problems = [
            Reject(where, problem, language, whole_record=False)
            for language, (where, text, reason) in row.items()
            if (problem := reason or judge.problem(text))
        ]
        bad += problems
        if not problems:
            good.append(row)
    if not good:
        yield Reject(bad[0].where, bad[0].reason, bad[0].language)
        return
    texts = [(language, "\n".join(row[language][1].strip() for row in good)) for language in good[0]]
    where = next(iter(document[0].values()))[0]
    if judge.config.kind == "parallel":
        yield from judge.translations([(language, where, text) for language, text in texts], where)
    else:
        ((language, text),) = texts
        problem = judge.problem(text)
        yield Reject(where, problem, language) if problem else (where, Sentence(language, text))
    yield from bad
