"""The dry run: what a recipe would build and spend on so many ranks, printed without training anything.

The model, or the first tensor rank's part of it, is really built, on the meta device, so a large one costs nothing:
its parameters are counted. Bytes are arithmetic (training/sizes.py, activation_sizes.py, traffic.py) and labelled so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.recipe import RawRecipe, UserError
from data.tasks import TASKS
from model.config import EncoderConfig
from model.parallel.split import whole_shape
from model.parallel.topology import Axis
from model.pretraining import PretrainingModel
from training.activation_sizes import Contents, Cutting, activations, loss_temporaries, pool
from training.build import DataParts, encoder_config, open_data
from training.config import Recipe
from training.cost import Work, times_on_gpus, work_of
from training.sharding import resolve_sharding
from training.sizes import WIDTHS, Shapes, States, Zero, elements, states
from training.traffic import Passes, of_pool, of_tensor, of_zero

TEXT = 64  # tokens of a text, where no store says how long they are


class Parts(NamedTuple):
    """What the sizes of a rank are made of."""

    config: EncoderConfig
    whole: Shapes  # of the parameters
    shapes: Shapes  # of those, or parts of them, that a tensor rank has
    contents: Contents
    cutting: Cutting
    passes: Passes


class Sizes(NamedTuple):
    """Bytes of a rank at a ZeRO stage."""

    states: States
    activations: dict[str, int]
    temporaries: dict[str, int]
    pool: int
    pool_before: bool  # of several microbatches: when there are no activations yet
    sent: dict[str, int]  # in a step, to data ranks; then to tensor ranks

    @property
    def peak(self) -> int:
        """The most that a device holds: when the backward begins, or while the optimizer steps."""
        held = self.states
        backward = held.gathered + sum(self.activations.values()) + sum(self.temporaries.values())
        backward = max(backward, self.pool) if self.pool_before else backward + self.pool
        return held.resting - held.offloaded + max(backward, 0 if held.offloaded else held.updating)


def print_plan(
    recipe: Recipe,
    raw: RawRecipe,
    sharding: dict[str, Any],
    sharding_path: Path,
    world: int,
    device: str = "cpu",
) -> None:
    """Print parameters, tokens, budgets, memory and traffic of ``recipe`` on ``world`` ranks.

    ``device`` ("cpu", "cuda") is the one that is planned for, whatever there is here.

    Raises:
        UserError: something does not divide.

    """
    ranks = data_ranks_of(recipe, world)
    resolved = resolve_sharding(sharding, sharding_path, recipe, raw.path, ranks)
    prepared = (Path(recipe.store) / "manifest.json").is_file()
    data = open_data(recipe) if prepared else None
    ids = _ids(recipe) if data is None else data.material.tokenizer.vocabulary_size
    parts = parts_of(
        recipe,
        encoder_config(recipe, ids, 0 if data is None else len(data.store.languages)),
        resolved,
        device,
    )
    for line in (
        *_of_model(recipe, raw, sharding_path, resolved, parts, ranks, data, ids),
        *_of_budgets(recipe, raw, data),
        *_of_bytes(recipe, resolved, parts, ranks),
        *(lines_of_time(recipe, resolved, parts, ranks) if device == "cuda" else ()),
    ):
        print(line)


def data_ranks_of(recipe: Recipe, world: int) -> int:
    """How many data ranks ``world`` ranks are.

    Raises:
        UserError: they are not whole models.

    """
    tensor = recipe.parallel.tensor
    if world >= 1 and world % tensor == 0:
        return world // tensor
    below = world // tensor * tensor
    near = f"{below:,} or {below + tensor:,}" if below >= tensor else f"{tensor:,}"
    others = [str(n) for n in range(1, tensor) if tensor % n == 0 and world % n == 0]
    other = f", or parallel.tensor {' or '.join(others)}" if world >= 1 else ""
    raise UserError(
        f"--world {world} is not a multiple of parallel.tensor {tensor}, the ranks that share a model. Take --world"
        f" {near}{other}."
    )


def parts_of(recipe: Recipe, config: EncoderConfig, resolved: Mapping[str, Any], device: str) -> Parts:
    """Build what the first tensor rank would have on the meta device, and expect what a microbatch would hold.

    Raises:
        UserError: the encoder can not be cut over so many tensor ranks.

    """
    tensor = recipe.parallel.tensor
    problems = config.shared_by(tensor)
    if problems:
        raise UserError(f"parallel.tensor: {'; '.join(problems)}")
    with torch.device("meta"):
        model = PretrainingModel(
            config,
            recipe.model.temperature,
            learn_temperature=recipe.model.learn_temperature,
            tensor=Axis(0, tensor),
            sequence=recipe.parallel.sequence,
        )
    whole = {name: whole_shape(parameter) for name, parameter in model.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    implementation = recipe.kernels.vocabulary
    cutting = Cutting(
        tensor, recipe.parallel.sequence, recipe.model.activation_checkpointing, device, implementation
    )
    aligned = recipe.tasks.aligns
    accumulation = int(resolved["gradient_accumulation_steps"])
    passes = Passes(accumulation, aligned and accumulation > 1, recipe.tasks.generates)
    return Parts(config, whole, shapes, expected(recipe, device), cutting, passes)


def expected(recipe: Recipe, device: str) -> Contents:
    """A microbatch that is full, each task with its part of the tokens by the budgets, texts of ``TEXT`` tokens."""
    tokens = recipe.batch.microbatch_tokens
    shares = _shares(recipe)
    predicted = compared = generated = 0.0
    for name, task in recipe.tasks.enabled().items():
        if TASKS[name].loss == "masked":
            # Half of a document of these two is there to be read.
            half = 0.5 if name in ("camlm", "btmlm") else 1.0
            predicted += shares[name] * half * getattr(task, "mask_rate", 0.15)
        else:
            compared += shares[name]
        if name == "btmlm" or getattr(task, "generates", False):
            generated += shares[name]
    length = min(TEXT, recipe.maximum_tokens)
    documents = int(tokens * compared) // length
    return Contents(
        tokens,
        tokens,
        int(tokens * predicted),
        documents * length,
        documents,
        documents // 2,
        squares=tokens // length * length**2 if device == "cpu" else 0,
        generated=int(tokens * generated),
        readers=recipe.tasks.camlm is not None or recipe.tasks.generates,
    )


def sizes_of(
    recipe: Recipe, resolved: Mapping[str, Any], parts: Parts, data: int, stage: int | None = None
) -> Sizes:
    """The bytes of a rank of ``data`` data ranks; ``stage`` instead of the one of the DeepSpeed file."""
    zero = Zero.of(resolved, recipe.precision, stage)
    config, _, shapes, contents, cutting, passes = parts
    width = WIDTHS[recipe.precision]
    alone = int(resolved["gradient_accumulation_steps"]) == 1
    return Sizes(
        states(shapes, zero, data),
        activations(config, contents, cutting, width),
        loss_temporaries(config, contents, cutting, width, zero.stage < 2 and alone),
        pool(config, contents, cutting.device, passes.microbatches, data),
        passes.pool,
        {f"data ranks: {name}": size for name, size in of_zero(shapes, zero, data, passes).items()}
        | {f"data ranks: {name}": size for name, size in of_pool(config, contents, data, passes).items()}
        | {
            f"tensor ranks: {name}": size
            for name, size in of_tensor(config, shapes, contents, cutting, width, passes).items()
        },
    )


def step_work(recipe: Recipe, resolved: Mapping[str, Any], parts: Parts, data: int) -> Work:
    """What a rank of ``data`` data ranks has to do in a step; ``parts.contents.squares`` is that of any device."""
    config, _, shapes, contents, cutting, passes = parts
    sent = sizes_of(recipe, resolved, parts, data).sent
    to_data, to_tensor = (
        sum(size for name, size in sent.items() if name.startswith(to))
        for to in ("data ranks", "tensor ranks")
    )
    zero = Zero.of(resolved, recipe.precision)
    return work_of(config, shapes, contents, cutting, passes, zero, data, to_data, to_tensor)


def _of_model(
    recipe: Recipe,
    raw: RawRecipe,
    sharding_path: Path,
    resolved: Mapping[str, Any],
    parts: Parts,
    ranks: int,
    data: DataParts | None,
    ids: int,
) -> Iterator[str]:
    config, batch, tensor = parts.config, recipe.batch, recipe.parallel.tensor
    stage = int(resolved["zero_optimization"].get("stage", 0))
    axes = f" = {tensor} tensor x {ranks} data" if tensor > 1 else ""
    yield f"recipe {raw.path}, sharding {sharding_path} (ZeRO-{stage}), {tensor * ranks} rank(s){axes}"
    yield (
        f"  encoder     {config.layers} layers, width {config.width}, {config.heads} heads, feed-forward"
        + (f" {config.feed_forward}")
    )
    at_most = "" if data is not None else "at most "
    yield (
        f"  vocabulary  {config.vocabulary_size:,} rows in the token table, {at_most}{ids:,} ids in the tokenizer"
    )
    languages = ""
    if recipe.model.language_embeddings:
        languages = f", {config.languages * config.width:,} the languages', which are not exported"
        if data is None:
            languages = ", without the table of languages, which are counted when the store is prepared"
    parameters = sum(map(elements, parts.whole.values()))
    table = config.vocabulary_size * config.width
    yield f"  parameters  {parameters:,} ({table:,} of them the token table{languages})"
    if tensor > 1:
        own = sum(map(elements, parts.shapes.values()))
        shared = ", between the layers also the tokens" if recipe.parallel.sequence else ""
        yield f"  a rank has  {own:,} of them, 1 / {tensor} of what is cut and all of the rest{shared}"
    microbatches = batch.step_tokens // batch.microbatch_tokens
    own = resolved["gradient_accumulation_steps"]
    yield f"  step        {batch.step_tokens:,} tokens = {microbatches} microbatches of" + (
        f" {batch.microbatch_tokens:,}; {own} of them a {'data ' if tensor > 1 else ''}rank"
    )
    if own * ranks != microbatches:
        full = [n * ranks * batch.microbatch_tokens for n in (max(1, own - 1), own)]
        yield (
            f"              {own * ranks - microbatches} of {own * ranks} places for a microbatch stay empty:"
            f" batch.step_tokens {' or '.join(f'{n:,}' for n in dict.fromkeys(full))} would fill all {ranks} ranks"
        )
    yield f"  run         {recipe.steps:,} steps, {recipe.steps * batch.step_tokens:,} tokens"


def _of_budgets(recipe: Recipe, raw: RawRecipe, data: DataParts | None) -> Iterator[str]:
    if data is None:
        yield f"  budgets     the store is not prepared yet: python -m data.prepare --recipe {raw.path}"
        return
    yield "  budgets"
    begins = recipe.sampling.begins()
    nothing = np.zeros(len(data.streams), bool)
    shares = [data.shares(begin, nothing, {}).shares for begin in begins]
    for begin in begins[1:]:
        yield f"    a further stage from {begin:,} tokens on"
    for task in recipe.tasks.enabled():
        members = [i for i, stream in enumerate(data.streams) if stream.task.name == task]
        records = sum(len(data.streams[i]) for i in members)
        each = ", ".join(f"{100 * of_stage[members].sum():5.1f}" for of_stage in shares)
        yield f"    {task:<22} {each} % of the tokens, {len(members):4d} streams, {records:,} records"


def _of_bytes(recipe: Recipe, resolved: Mapping[str, Any], parts: Parts, ranks: int) -> Iterator[str]:
    found = sizes_of(recipe, resolved, parts, ranks)
    contents, of_states = parts.contents, found.states
    where = "GPU" if parts.cutting.device == "cuda" else "CPU"
    yield f"  memory of a rank on a {where}, by arithmetic (not measured):"
    for name, size in (
        ("weights", of_states.weights),
        ("gradients", of_states.gradients),
        ("optimizer", of_states.optimizer),
        ("ZeRO's buckets", of_states.buckets),
        ("gathered, at most", of_states.gathered),
        *((f"activations: {name}", size) for name, size in found.activations.items()),
        *((f"losses: {name}", size) for name, size in found.temporaries.items()),
        (f"losses: alignment pool{', before the rest' if found.pool_before else ''}", found.pool),
    ):
        if size:
            yield _row(name, size)
    yield _row("together, at most", found.peak)
    if of_states.offloaded:
        yield _row("and in the host's memory, offloaded", of_states.of_host)
    yield "  a rank sends in a step, by arithmetic (not measured):"
    for name, size in found.sent.items():
        yield _row(name, size)
    yield _row("together", sum(found.sent.values()))
    yield (
        f"    expected of a microbatch: {contents.tokens:,} tokens in texts of {TEXT}, {contents.predicted:,}"
        f" predicted, {contents.pairs:,} pairs"
    )
    yield "  the same at each ZeRO stage, GiB of a rank:"
    yield "    stage   weights  gradients  optimizer  together   sent in a step"
    chosen = int(resolved["zero_optimization"].get("stage", 0))
    for stage in range(4):
        at = sizes_of(recipe, resolved, parts, ranks, stage)
        columns = at.states.weights, at.states.gradients, at.states.optimizer, at.peak, sum(at.sent.values())
        gib = [f"{size / 2**30:.3f}" for size in columns]
        yield f"    {stage:<5} {gib[0]:>9} {gib[1]:>10} {gib[2]:>10} {gib[3]:>9} {gib[4]:>16}" + (
            " <- this one" if stage == chosen else ""
        )


def lines_of_time(recipe: Recipe, resolved: Mapping[str, Any], parts: Parts, ranks: int) -> Iterator[str]:
    """What a step costs a rank of ``ranks`` data ranks, and how long GPUs take for it, both by arithmetic."""
    length = min(TEXT, recipe.maximum_tokens)
    contents = parts.contents._replace(squares=parts.contents.tokens * length)
    work = step_work(recipe, resolved, parts._replace(contents=contents), ranks)
    yield "  time of a step, by arithmetic from data sheets (not measured; training/cost.py), if nothing overlaps:"
    yield (
        f"    a rank: {work.operations / 1e12:,.2f} T operations, {(work.moved + work.updated) / 2**30:,.2f} GiB moved,"
        f" {(work.sent + work.shared) / 2**30:,.3f} GiB sent in {work.messages:,.0f} messages"
    )
    yield from times_on_gpus(work, recipe.batch.step_tokens, ranks * parts.cutting.tensor)


def _row(name: str, size: int) -> str:
    return f"    {name:<40} {size / 2**30:9.3f} GiB"


def _shares(recipe: Recipe) -> dict[str, float]:
    """Of each task its part of the tokens at the beginning, if every corpus has enough of them."""
    tasks = recipe.tasks.enabled()
    budgets = recipe.sampling.budgets.model_dump()
    found: dict[str, float] = {}
    for side, budget in budgets.items():
        members = {name: task.weight for name, task in tasks.items() if TASKS[name].side == side}
        together = sum(members.values())
        found |= {name: budget * weight / together if together else 0.0 for name, weight in members.items()}
    spent = sum(found.values()) or 1.0
    return {name: share / spent for name, share in found.items()}


def _ids(recipe: Recipe) -> int:
    if recipe.tokenizer.train is not None:
        return recipe.tokenizer.train.vocabulary_size
    from data.tokenizer import Tokenizer

    assert recipe.tokenizer.path is not None
    return Tokenizer.open(Path(recipe.tokenizer.path)).vocabulary_size
