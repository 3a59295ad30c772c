"""The step of a run: a problem as a recipe, its documents as microbatches, and what ``Trainer.fit`` does with them.

step = RunStep(problem)     in every rank
step()                      tallies, pseudo tokens, forward, losses, backward, optimizer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.step.problem import Problem, Work
from benchmarks.step.texts import data_sections
from data.batch import PackedBatch
from data.microbatch import Microbatch
from data.stream import BatchStream
from data.tally import Tally
from training.build import DataParts, build_model, maker_from, open_data, planner_of, pseudo_tokens_of
from training.config import Recipe
from training.engine import Engine, World, join_world, sharder
from training.optimizer import build_optimizer
from training.sharding import read_sharding, resolve_sharding, sharding_file
from training.step import run_microbatches, sum_tallies, weights_of
from training.writing import write_pseudo_tokens

EngineOf = Callable[[Recipe, DataParts, World], Engine]
_RATE = 1e-4


def recipe_of(problem: Problem, ranks: int) -> Recipe:
    """The recipe whose first step is the problem's. What a step holds does not depend on the ranks."""
    microbatch = problem.tokens // (problem.microbatches or ranks)
    return Recipe.model_validate(
        {
            **data_sections(problem.texts),
            "name": "benchmark",
            "steps": 1,
            "precision": problem.precision,
            "workers": 0,
            "tasks": {name: {} for name in problem.tasks},
            "batch": {
                "step_tokens": problem.tokens,
                "row_tokens": max(problem.tokens // 4, 2 * problem.texts.longest),
                "microbatch_tokens": microbatch,
            },
            "model": {
                "layers": problem.layers,
                "width": problem.width,
                "heads": problem.heads,
                "feed_forward": problem.feed_forward,
                "vocabulary_size": problem.vocabulary,
                "positions": problem.texts.longest + 2,
                "language_embeddings": "btmlm" in problem.tasks,
            },
            "optimizer": {"learning_rate": _RATE},
        }
    )


def first_step(recipe: Recipe, data: DataParts, rank: int = 0, ranks: int = 1) -> list[Microbatch]:
    """This rank's microbatches of step 1; of the only rank: all of them."""
    stream = BatchStream(
        planner_of(recipe, data),
        lambda: maker_from(recipe, data),
        microbatch_tokens=recipe.batch.microbatch_tokens,
        rank=rank,
        ranks=ranks,
        workers=0,
    )
    return stream.next()


def work_of(tally: Any, microbatches: Sequence[Microbatch] = ()) -> Work:
    """Of a step's tally (S, len(Tally)); what is written, where the microbatches of all ranks are given."""
    written = [made for each in microbatches if (made := each.arrays["generation"])]
    return Work(
        int(tally[:, Tally.TOKENS].sum()),
        int(tally[:, Tally.PREDICTIONS].sum()),
        sum(len(made["token_ids"]) for made in written),
        sum(len(made["predicted"]) for made in written),
    )


def sharded(recipe: Recipe, data: DataParts, world: World) -> Engine:
    """The engine of a run with the DeepSpeed file that it takes if none is named."""
    path = sharding_file(world.device.type == "cuda", world.processes, recipe.precision)
    sharding = resolve_sharding(read_sharding(path), path, recipe, Path("benchmark"), world.ranks)
    model, _ = build_model(recipe, data, settle=sharder(sharding, world))
    optimizer = build_optimizer(model.named_parameters(), recipe.optimizer, world.device)
    return Engine(model, optimizer, sharding, world)


class RunStep:
    """A step of a run, again and again on the same documents; in every rank."""

    def __init__(self, problem: Problem, engine_of: EngineOf = sharded) -> None:
        """Join the ranks that the environment names, build the model, and make this rank's microbatches."""
        self.world = join_world()
        self.recipe = recipe_of(problem, self.world.ranks)
        self.data = open_data(self.recipe)
        self.engine = engine_of(self.recipe, self.data, self.world)
        self.microbatches = first_step(self.recipe, self.data, self.world.rank, self.world.ranks)
        self.pseudo = pseudo_tokens_of(self.recipe, self.data, self.world.device)
        self.work = work_of(sum_tallies(self.microbatches, [])[0])
        self._aligned = any(stream.task.loss == "alignment" for stream in self.data.streams)

    def __call__(self) -> None:
        """What ``Trainer.fit`` does between two lines of its log."""
        tally, _ = sum_tallies(self.microbatches, [])
        if self.pseudo is not None:
            text = write_pseudo_tokens(self.engine, self.microbatches, self.pseudo, tally)
            batches, tally = text.batches, text.tally
        else:
            batches = [PackedBatch.from_arrays(each.arrays) for each in self.microbatches]
        weights = weights_of(tally, self.data.streams, self.recipe.tasks, self.world.device)
        self.engine.train()
        run_microbatches(self.engine, batches, weights, aligned=self._aligned)
        self.engine.step(_RATE)
