"""The text of a problem: the demo's corpora as they are, or consecutive texts of them joined into longer ones."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from benchmarks.step.problem import Texts
from data.config import DataConfig
from data.preparation import prepare
from data.tokenizer import Tokenizer

_DEMO = Path("data/corpora/demo")
_FOLDER = Path("stores/benchmark-step")
_SHORTEST, _LONGEST = 128, 512  # tokens of a joined text

Count = Callable[[str], int]
Part = TypeVar("Part")


def data_sections(texts: Texts) -> dict[str, Any]:
    """The sections of a recipe that say what is read."""
    folder = _folder(texts)
    # The longer texts are made of what the tokenizer of the shorter ones counts.
    tokenizer = (
        {"train": {"vocabulary_size": texts.ids, "soft_limit": True}}
        if texts.lengths == "demo"
        else {"path": str(_folder(_short(texts)) / "store" / "tokenizer")}
    )
    return {
        "store": str(folder / (f"store-{texts.cut}" if texts.cut else "store")),
        "maximum_tokens": texts.longest,
        "tokenizer": tokenizer,
        "corpora": {
            "rows": {
                "kind": "parallel", "format": "jsonl", "path": str(folder / "rows.jsonl"), "translations": "t",
            },
            "sentences": {
                "kind": "monolingual", "format": "jsonl", "path": str(folder / "sentences.jsonl"),
                "text": "text", "language": {"field": "lang"},
            },
        },
    }  # fmt: skip


def prepare_texts(texts: Texts) -> None:
    """Write the corpora and prepare their token store, where that was not done before."""
    folder = _folder(texts)
    if not (folder / "rows.jsonl").exists():
        rows, sentences = _lines("parallel_train", texts), _lines("mono", texts)
        if texts.lengths == "long":
            prepare_texts(_short(texts))
            count = _count_of(texts)
            rows, sentences = joined_rows(rows, count), joined_sentences(sentences, count)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "sentences.jsonl", sentences)
        _write(folder / "rows.jsonl", rows)
    # The folder is ours: a store of another version of this project is made anew.
    prepare(DataConfig.model_validate(data_sections(texts)), rebuild=True, say=lambda _: None)


def joined_sentences(lines: Iterable[dict[str, Any]], count: Count) -> Iterator[dict[str, Any]]:
    """Consecutive texts of one language as one."""
    waiting: dict[str, _Joined[str]] = defaultdict(_Joined)
    for line in lines:
        texts = waiting[line["lang"]].add(line["text"], count(line["text"]))
        if texts:
            yield {"lang": line["lang"], "text": " ".join(texts)}


def joined_rows(lines: Iterable[dict[str, Any]], count: Count) -> Iterator[dict[str, Any]]:
    """Consecutive rows as one, in the languages that all of them have; English decides the length."""
    waiting: _Joined[dict[str, str]] = _Joined()
    for line in lines:
        rows = waiting.add(line["t"], count(line["t"]["en"]))
        if rows:
            languages = set.intersection(*map(set, rows))
            yield {"t": {name: " ".join(row[name] for row in rows) for name in sorted(languages)}}


class _Joined(Generic[Part]):
    """Parts that become one text as soon as they are as long as was drawn, evenly."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        self._parts: list[Part] = []
        self._begin()

    def add(self, part: Part, tokens: int) -> list[Part]:
        """All parts, if they are long enough with this one."""
        self._parts.append(part)
        self._left -= tokens
        if self._left > 0:
            return []
        parts, self._parts = self._parts, []
        self._begin()
        return parts

    def _begin(self) -> None:
        self._left = int(self._random.integers(_SHORTEST, _LONGEST - 32))  # the last part goes beyond


def _short(texts: Texts) -> Texts:
    """Those that the longer ones are made of."""
    return texts._replace(lengths="demo", cut=0)


def _count_of(texts: Texts) -> Count:
    tokenizer = Tokenizer.open(_folder(_short(texts)) / "store" / "tokenizer")
    return lambda text: len(tokenizer.encode([text])[0])


def _folder(texts: Texts) -> Path:
    return _FOLDER / f"{texts.lengths}-{texts.ids}-{texts.every}"


def _lines(name: str, texts: Texts) -> Iterable[dict[str, Any]]:
    with gzip.open(_DEMO / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for number, line in enumerate(file) if number % texts.every == 0]


def _write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
