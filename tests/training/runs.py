"""Whole runs of the tests: the Trainer on forked ranks, commands with their status and output, what a run left."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch
from accelerate import PartialState

from data.recipe import parse_recipe, read_recipe
from data.store import TokenStore
from tests.ranks import run_on_ranks
from training import environment
from training.checkpoint import checkpoints_in, find, shard_name
from training.config import Recipe
from training.engine import Engine
from training.metrics import read_metrics
from training.shards import Shards, described
from training.trainer import Trainer

# What deepspeed does when it is first used (a compiler is asked, torch's own is imported): once, before the forks.
assert deepspeed.ops.__compatible_ops__
for module in ("deepspeed.runtime.zero.muon.muon_optimizer", "pandas", "accelerate"):
    importlib.import_module(module)
WITHOUT_EVALUATION = "evaluation={}"
WITH_BTMLM = ("tasks.btmlm={}", "model.language_embeddings=true")
# What of a step must be the same again; times are not.
EXACT = (
    "loss", "grad_norm", "learning_rate", "temperature", "tokens", "packing_efficiency",
    "mixed/rejected", "mixed/one_language", "mixed/realised_rate", "mixed/overlap",
)  # fmt: skip


def sharding(stage: int) -> dict[str, Any]:
    """A DeepSpeed dict under which ZeRO-3 really partitions: by default small tensors stay whole."""
    return {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}


def train(
    recipe: Path,
    runs: Path,
    *overrides: str,
    ranks: int = 1,
    stage: int = 1,
    values: dict[str, Any] | None = None,
    probe: Callable[[], None] | None = None,
    timeout: float = 120,
) -> None:
    """Run the recipe on forked ranks; ``probe`` is called in each of them first and may replace things there.

    ``values`` is a DeepSpeed dict to use instead of that of ``stage``.
    """

    def of_rank(group: object) -> None:
        launched()
        if probe is not None:
            probe()
        raw = read_recipe(recipe, overrides)
        Trainer(parse_recipe(raw, Recipe), raw, values or sharding(stage), Path("ds.json"), runs).fit()

    run_on_ranks(of_rank, ranks, timeout=timeout)


def numbers(run: Path) -> list[dict[str, float]]:
    """Of every step: what must come out the same again, all losses and accuracies among it."""
    return [
        {
            k: v
            for k, v in step.items()
            if k in EXACT or k.split("/")[0] in ("loss", "accuracy", "share", "pseudo")
        }
        for step in read_metrics(run)
    ]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """float32 weights of the newest checkpoint, by name."""
    return dict(find(checkpoints_in(run / "checkpoints")[0]).weights())


def save_weights(engine: Engine, folder: Path) -> None:
    """What a checkpoint has of the engine, from each rank, for ``saved_weights``."""
    folder.mkdir(exist_ok=True)
    (folder / "parameters.json").write_text(json.dumps(described(engine.cuts)))
    engine.save(folder / shard_name(engine.world.process))


def saved_weights(folder: Path, kind: str = "weight") -> dict[str, torch.Tensor]:
    """By name, what was saved with ``save_weights``."""
    parameters = json.loads((folder / "parameters.json").read_text())
    shards = Shards(sorted(folder.glob("rank-*")), parameters)
    return {name: shards.whole(name, kind) for name in parameters}


def store_of(recipe: Path) -> TokenStore:
    return TokenStore.open(Path(parse_recipe(read_recipe(recipe), Recipe).store))


def digests(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` with its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def launched() -> None:
    """What a launcher sets; the process group of the test is there already."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    PartialState._reset_state()  # one that the parent may hold knows nothing of these ranks
    environment.prepare()


class Done(NamedTuple):
    """A command that ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one message of a command that was refused: status 2, one ``error:``, no traceback."""
        assert self.status == 2, self
        assert "Traceback" not in self.err and "Traceback" not in self.out, self.err
        lines = self.err.splitlines()
        (start,) = [number for number, line in enumerate(lines) if line.startswith("error:")]
        return "\n".join(lines[start:])


def call(
    main: Callable[[], int], *arguments: object, ranks: int = 1, probe: Callable[[], None] | None = None
) -> list[Done]:
    """What a command's ``main`` does on each of ``ranks`` forked processes."""

    def of_rank(group: Any, folder: Path) -> int:
        for number, name in ((1, "out"), (2, "err")):
            getattr(sys, f"std{name}").flush()
            file = os.open(folder / f"{name}{group.rank()}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["command", *map(str, arguments)]
        launched()
        if probe is not None:
            probe()
        try:
            return main()
        except SystemExit as leaving:
            return int(leaving.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        statuses = run_on_ranks(of_rank, ranks, folder, timeout=120)
        return [
            Done(status, (folder / f"out{r}").read_text(), (folder / f"err{r}").read_text())
            for r, status in enumerate(statuses)
        ]


def relative(values: Sequence[float], truth: Sequence[float]) -> float:
    """The largest difference, relative for numbers above 1."""
    assert len(values) == len(truth)
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(values, truth, strict=True))


def column(steps: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [step[name] for step in steps]
