"""A small token store of real text, made once a test run."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig
from data.lexicon import Lexicon
from data.preparation import prepare
from data.recipe import parse_recipe, read_recipe
from data.store import TokenStore
from data.task import Material
from data.tokenizer import Tokenizer
from training.config import Recipe

DEMO = Path("data/corpora/demo")


@functools.cache
def first_lines(name: str, count: int) -> bytes:
    with gzip.open(DEMO / name) as file:
        return b"".join(line for line, _ in zip(file, range(count), strict=False))


def small_config(folder: Path, **changes: Any) -> DataConfig:
    """Rows of the demo: parallel, monolingual in 22 languages, and a held-out parallel corpus."""
    files = {
        "rows.jsonl": first_lines("parallel_train.jsonl.gz", 60),
        # the monolingual file is ordered by language: every 50th line
        "sentences.jsonl": b"".join(first_lines("mono.jsonl.gz", 30000).splitlines(keepends=True)[::50]),
        "held_out.jsonl": first_lines("udhr.jsonl.gz", 5),
    }
    for name, content in files.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(content)
    settings: dict[str, Any] = {
        "store": str(folder / "store"),
        "corpora": {
            "rows": {
                "kind": "parallel",
                "format": "jsonl",
                "path": str(folder / "rows.jsonl"),
                "translations": "t",
            },
            "sentences": {
                "kind": "monolingual",
                "format": "jsonl",
                "path": str(folder / "sentences.jsonl"),
                "text": "text",
                "language": {"field": "lang"},
            },
            "held_out": {
                "kind": "parallel",
                "format": "jsonl",
                "path": str(folder / "held_out.jsonl"),
                "translations": "t",
                "held_out": True,
            },
        },
        "tokenizer": {"train": {"vocabulary_size": 3000}},
        "maximum_tokens": 64,
    }
    return DataConfig.model_validate(settings | changes)


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A store to read; tests that harm one copy it first."""
    return prepare(small_config(tmp_path_factory.mktemp("small_store")), workers=1)


@pytest.fixture
def configure(tmp_path: Path, small_store: TokenStore) -> Callable[..., DataConfig]:
    """Settings in a folder of this test, with the small store's tokenizer, so that nothing is trained."""

    def configured(**changes: Any) -> DataConfig:
        return small_config(tmp_path, **{"tokenizer": {"path": str(small_store.tokenizer_folder)}, **changes})

    return configured


@pytest.fixture(scope="module")
def world(small_recipe: Path) -> tuple[Recipe, TokenStore, Material]:
    """The small run's recipe, its store, and what its tasks are made of."""
    recipe = parse_recipe(read_recipe(small_recipe), Recipe)
    store = TokenStore.open(recipe.store)
    lexicon = Lexicon.load([Path(entry.path) for entry in recipe.lexicons])
    return recipe, store, Material(Tokenizer.open(store.tokenizer_folder), lexicon, store.languages, 64)
