"""The text that is prepared: sentences of the demo in all its languages, and a tokenizer of them."""

from __future__ import annotations

import json
import random
from itertools import cycle
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.preparation import prepare
from data.sources import read_corpus

DEMO = Path("data/corpora/demo")
VOCABULARY = 16384


def config_of(folder: Path, store: str, tokenizer: dict[str, Any], **others: Any) -> DataConfig:
    """What a recipe says of the data: the one corpus, with ``others`` changed, and nobody cuts its texts."""
    text = {"kind": "monolingual", "format": "jsonl", "path": str(folder / "text.jsonl"), "text": "text"}
    return DataConfig.model_validate(
        {
            "store": str(folder / store),
            "maximum_tokens": 100_000,
            "tokenizer": tokenizer,
            "corpora": {"text": {**text, "language": {"field": "lang"}, **others}},
        }
    )


def write_corpus(folder: Path, size: int) -> None:
    """Sentences of the demo in all its languages, two by two, and a tokenizer of them."""
    sentences: dict[str, list[str]] = {}
    path = {"path": str(DEMO / "mono.jsonl.gz")}
    for item in read_corpus(config_of(folder, "", {"path": "none"}, **path).corpora["text"], 10_000):
        if isinstance(item, tuple):
            sentences.setdefault(item[1].language, []).append(item[1].text)  # type: ignore[union-attr]
    draw = random.Random(1)
    pairs = [
        (language, f"{first} {second}")
        for language, mine in sorted(sentences.items())
        for first, second in zip(mine[::2], mine[1::2], strict=False)
    ]
    draw.shuffle(pairs)
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for language, text in cycle(pairs):  # each once, before any is there again
            size -= file.write(json.dumps({"text": text, "lang": language}, ensure_ascii=False) + "\n")
            if size <= 0:
                break
    trained = prepare(
        config_of(folder, "trained", {"train": {"vocabulary_size": VOCABULARY}}, **path),
        workers=1,
        say=lambda message: None,
    )
    trained.tokenizer_folder.rename(folder / "tokenizer")
