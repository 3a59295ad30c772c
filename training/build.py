"""From a recipe to its parts: store, streams, planner, model. Used by the run, the dry run and the evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.config import DataConfig
from data.inputs import differences
from data.lexicon import Lexicon
from data.masking import FIRST_ORDINARY_ID
from data.microbatch import MicrobatchMaker
from data.planner import Planner
from data.recipe import UserError
from data.sampling import Stream, bilingual_shares, streams_of
from data.scripts import find_scripts
from data.settings.task import BackTranslationConfig
from data.shares import Shares
from data.store import TokenStore
from data.task import Material
from data.teaching import Taught
from data.tokenizer import Tokenizer
from model.config import EncoderConfig
from model.generation import Decoding
from model.huggingface import ModelError, read_config, read_weights
from model.parallel.split import split_of
from model.parallel.topology import Axis
from model.pretraining import PretrainingModel, first_values
from objectives.back_translation import PseudoTokens
from objectives.second_language import ScriptTables, UseOfIds
from training.config import Recipe


class DataParts(NamedTuple):
    """What a run reads."""

    store: TokenStore
    material: Material
    streams: list[Stream]
    shares: Shares
    taught: Taught


def open_data(recipe: Recipe, *, trains: bool = True) -> DataParts:
    """The prepared store with its tokenizer and lexicon, and the streams of the recipe's tasks.

    Without ``trains``, what a teacher said is left where it is: a model is measured without it.

    Raises:
        UserError: there is no store, or it was prepared with other settings. Whether the files that it was made
            from are still the same is seen by ``data.prepare`` alone, which reads them.

    """
    store = TokenStore.open(Path(recipe.store))
    wanted = recipe.model_dump(mode="json", include=set(DataConfig.model_fields) - {"store"})
    different = differences(store.manifest["inputs"]["settings"], wanted)
    if different:
        raise UserError(
            "\n  ".join([f"{recipe.store}: holds a token store of other inputs", *different])
            + "\nReplace it with: python -m data.prepare --recipe RECIPE --rebuild"
        )
    lexicon = Lexicon.load([Path(entry.path) for entry in recipe.lexicons]) if recipe.lexicons else None
    tokenizer = Tokenizer.open(store.tokenizer_folder)
    bilingual = bilingual_shares(store, recipe.sampling)
    material = Material(tokenizer, lexicon, store.languages, recipe.maximum_tokens, bilingual)
    streams = streams_of(store, recipe.tasks, recipe.sampling, lexicon)
    shares = Shares(streams, recipe.tasks, recipe.sampling)
    taught = Taught.open(recipe.tasks, store) if trains else Taught()
    return DataParts(store, material, streams, shares, taught)


def planner_of(recipe: Recipe, data: DataParts) -> Planner:
    """The planner at step 1."""
    return Planner(
        data.streams,
        data.shares,
        step_tokens=recipe.batch.step_tokens,
        row_tokens=recipe.batch.row_tokens,
        maximum_tokens=recipe.maximum_tokens,
        seed=recipe.seed,
    )


def pseudo_tokens_of(recipe: Recipe, data: DataParts, device: torch.device | str) -> PseudoTokens | None:
    """How the model writes pseudo tokens, where a task of the recipe has any."""
    if not recipe.tasks.generates:
        return None
    tokenizer = data.material.tokenizer
    counts = data.store.ids_of_languages()
    scripts = find_scripts(tokenizer.pieces(range(tokenizer.vocabulary_size)), counts)
    config, mixed = recipe.tasks.btmlm or BackTranslationConfig(), recipe.tasks.mixed_alignment
    return PseudoTokens(
        Decoding(
            range(FIRST_ORDINARY_ID, tokenizer.mask_id),
            config.decode.top_k,
            config.decode.temperature,
            torch.from_numpy(counts > 0).to(device) if config.restrict_to_language else None,
        ),
        ScriptTables(
            torch.from_numpy(scripts.of_ids).to(device), torch.from_numpy(scripts.of_languages).to(device)
        ),
        UseOfIds.of(counts, device) if mixed is not None and mixed.generates else None,
    )


def maker_from(recipe: Recipe, data: DataParts) -> MicrobatchMaker:
    """A microbatch maker of this process, over what is open already."""
    tokens = recipe.batch.microbatch_tokens
    return MicrobatchMaker(
        data.streams, data.material, data.store, recipe.tasks, tokens, recipe.seed, data.taught
    )


def maker_of(recipe: Recipe) -> functools.partial[MicrobatchMaker]:
    """What opens a microbatch maker in a worker process."""
    return functools.partial(
        MicrobatchMaker.open,
        Path(recipe.store),
        [Path(entry.path) for entry in recipe.lexicons],
        recipe.tasks,
        recipe.sampling,
        microbatch_tokens=recipe.batch.microbatch_tokens,
        maximum_tokens=recipe.maximum_tokens,
        seed=recipe.seed,
    )


def encoder_config(recipe: Recipe, ids: int, languages: int) -> EncoderConfig:
    """The encoder's shape for a tokenizer of ``ids`` ids: the recipe's, or that of the folder to start from.

    Of the ``languages`` of the store it has a table if the recipe wants one.

    The token table may have more rows than there are ids, as those of published models do: rows that no id names
    are never looked up, and the masked head learns that they are never right.
    """
    shape = recipe.model
    languages = languages if shape.language_embeddings else 0
    if shape.start_from is not None:
        try:
            config = read_config(Path(shape.start_from))
        except ModelError as error:
            raise UserError(str(error)) from None
        if config.vocabulary_size < ids:
            raise UserError(
                f"model.start_from {shape.start_from} has {config.vocabulary_size} token vectors and the tokenizer"
                f" of {recipe.store} has {ids} ids. Set tokenizer.path to {shape.start_from} and prepare"
                " again."
            )
        if recipe.maximum_tokens > config.longest_document:
            raise UserError(
                f"maximum_tokens {recipe.maximum_tokens}: the model of {shape.start_from} takes documents of at most"
                f" {config.longest_document} tokens."
            )
        if problem := recipe.alignment.too_wide(config.width):
            raise UserError(f"{problem}.")
        ours = {"dropout": shape.dropout, "initializer_std": shape.initializer_std, "languages": languages}
        return config.model_copy(update=ours)
    config = shape.encoder(ids, languages)
    if config.vocabulary_size < ids:
        raise UserError(
            f"model.vocabulary_size {config.vocabulary_size}: the tokenizer of {recipe.store} has {ids} ids. Set it to"
            f" {ids} or more, or leave it out."
        )
    return config


def build_model(
    recipe: Recipe,
    data: DataParts,
    layer_norm: type[nn.Module] = nn.LayerNorm,
    tensor: Axis = Axis(),
    settle: Callable[[nn.Parameter], None] | None = None,
) -> tuple[PretrainingModel, list[str]]:
    """The model with its first weights, and the names of those that the folder to start from did not hold.

    Cut over the ranks of ``tensor``: the part of this one. ``settle`` is called for every parameter as soon as it has
    its values, before the next one gets any, and may shard it over data ranks: so no rank holds more than its shards
    and a parameter.

    Raises:
        UserError: the folder to start from can not be read, or what it holds can not be cut over so many ranks.

    """
    config = encoder_config(recipe, data.material.tokenizer.vocabulary_size, len(data.store.languages))
    problems = config.shared_by(tensor.size)
    if problems:
        raise UserError(
            f"parallel.tensor, with the model of {recipe.model.start_from}: {'; '.join(problems)}"
        )
    model = PretrainingModel(
        config,
        recipe.model.temperature,
        learn_temperature=recipe.model.learn_temperature,
        seed=recipe.seed if settle is None else None,
        layer_norm=layer_norm,
        checkpoint_layers=recipe.model.activation_checkpointing,
        vocabulary_loss=recipe.kernels.vocabulary,
        tensor=tensor,
        sequence=recipe.parallel.sequence and tensor.size > 1,
    )
    parameters = dict(model.named_parameters())
    if recipe.model.start_from is not None:
        try:
            for name, whole in read_weights(Path(recipe.model.start_from), config):
                parameter = parameters.pop(name)
                _fill(parameter, whole, tensor)
                del whole
                if settle is not None:
                    settle(parameter)
        except ModelError as error:
            raise UserError(str(error)) from None
    fresh = [name for name in parameters if not name.startswith("temperature")]
    if settle is not None:
        for name, parameter in parameters.items():
            first_values(name, parameter, config, recipe.seed, tensor)
            settle(parameter)
    return model, fresh if recipe.model.start_from is not None else []


@torch.no_grad()
def _fill(parameter: nn.Parameter, whole: Tensor, tensor: Axis) -> None:
    """Give ``parameter`` the values of ``whole``, or of the part that it is; ``whole`` may become its memory."""
    split = split_of(parameter)
    parameter.data = whole if split is None else split.take(whole, tensor.rank, tensor.size)
