"""Streams of microbatches for tests, and for the scripts of tests: these start sooner without DeepSpeed."""

from __future__ import annotations

import functools
from pathlib import Path

from data.lexicon import Lexicon
from data.microbatch import MicrobatchMaker
from data.planner import Planner
from data.recipe import parse_recipe, read_recipe
from data.sampling import streams_of
from data.shares import Shares
from data.store import TokenStore
from data.stream import BatchStream
from training.config import Recipe


def streams_for(
    recipe_path: Path,
    *settings_of_recipe: str,
    ranks: int = 1,
    tokens: int = 1024,
    workers: int = 0,
    only: int | None = None,
) -> list[BatchStream]:
    """The stream of every rank, or of one, each with a planner of its own."""
    recipe = parse_recipe(read_recipe(recipe_path, settings_of_recipe), Recipe)
    store = TokenStore.open(Path(recipe.store))
    lexicons = [Path(entry.path) for entry in recipe.lexicons]
    streams = streams_of(store, recipe.tasks, recipe.sampling, Lexicon.load(lexicons))
    settings = {"maximum_tokens": recipe.maximum_tokens, "seed": recipe.seed}
    opener = functools.partial(
        MicrobatchMaker.open,
        Path(recipe.store),
        lexicons,
        recipe.tasks,
        recipe.sampling,
        microbatch_tokens=tokens,
        **settings,
    )
    return [
        BatchStream(
            Planner(
                streams,
                Shares(streams, recipe.tasks, recipe.sampling),
                step_tokens=recipe.batch.step_tokens,
                row_tokens=recipe.batch.row_tokens,
                **settings,
            ),
            opener,
            microbatch_tokens=tokens,
            rank=rank,
            ranks=ranks,
            workers=workers,
        )
        for rank in (range(ranks) if only is None else [only])
    ]


def processes_of(stream: BatchStream) -> list[int]:
    assert stream._workers is not None
    return list(stream._workers.pool._processes)
