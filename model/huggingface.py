"""Model folders of Hugging Face, both ways; the only file that imports transformers.

Read: XLM-RoBERTa folders (with or without the masked-token head) and BERT folders that use XLM-R's
vocabulary, such as multilingual-e5. Written: XLM-RoBERTa folders that AutoModel, AutoModelForMaskedLM and
SentenceTransformer open offline, without code of ours. The names of the weights are in
``model.huggingface_names``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import torch
from torch import Tensor

from model.config import EncoderConfig
from model.huggingface_files import Tensors, read_json
from model.huggingface_names import (
    FAMILIES,
    FIRST_POSITION,
    ModelError,
    from_theirs,
    to_theirs,
)
from model.tensor_file import pieces, write_tensors

__all__ = [
    "ModelError",
    "ReopenedOutputs",
    "load_weights",
    "read_config",
    "read_weights",
    "reopened_outputs",
    "write_folder",
]

# tokenizer_config.json is copied too, with the length at which texts are cut.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
)


def read_config(folder: str | os.PathLike[str]) -> EncoderConfig:
    """Return the shape of the model in ``folder``; ModelError if it is neither XLM-RoBERTa nor BERT."""
    path = Path(folder) / "config.json"
    values = read_json(path)
    family = _family(values, path)
    refused = {
        "hidden_act": (values.get("hidden_act", "gelu"), "gelu"),
        "position_embedding_type": (values.get("position_embedding_type", "absolute"), "absolute"),
        "is_decoder": (values.get("is_decoder", False), False),
        "tie_word_embeddings": (values.get("tie_word_embeddings", True), True),
        "pad_token_id": (values.get("pad_token_id", 1 if family == "xlm-roberta" else 0), FIRST_POSITION - 1),
    }
    for key, (found, needed) in refused.items():
        if found != needed:
            why = " (the vocabulary must be laid out like XLM-R's)" if key == "pad_token_id" else ""
            raise ModelError(f"{path}: {key} is {found!r}, this encoder has {needed!r}{why}")
    try:
        return EncoderConfig(
            vocabulary_size=values["vocab_size"],
            layers=values["num_hidden_layers"],
            width=values["hidden_size"],
            heads=values["num_attention_heads"],
            feed_forward=values["intermediate_size"],
            positions=values["max_position_embeddings"] + (FIRST_POSITION if family == "bert" else 0),
            layer_norm_eps=values.get("layer_norm_eps", 1e-5 if family == "xlm-roberta" else 1e-12),
            initializer_std=values.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise ModelError(
            f"{path}: {error.args[0]} is missing; is it the configuration of a whole model?"
        ) from error
    except pydantic.ValidationError as error:
        raise ModelError(f"{path}: {error}") from error


def load_weights(folder: str | os.PathLike[str], config: EncoderConfig) -> dict[str, Tensor]:
    """Return the folder's weights under the names of ``PretrainingModel(config)``, float32.

    ``config`` is ``read_config(folder)``, possibly with another dropout. To be loaded with ``strict=False``:
    the temperature is never there, and a folder without a masked-token head gives none. Both then keep their
    initial values, and ``load_state_dict`` reports them as missing.
    """
    return dict(read_weights(folder, config))


def read_weights(folder: str | os.PathLike[str], config: EncoderConfig) -> Iterator[tuple[str, Tensor]]:
    """What ``load_weights`` returns, one at a time: no more than two are in memory."""
    folder = Path(folder)
    family = _family(read_json(folder / "config.json"), folder / "config.json")
    try:
        yield from from_theirs(Tensors(folder), family, config)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def write_folder(
    state_dict: Mapping[str, Tensor],
    config: EncoderConfig,
    folder: str | os.PathLike[str],
    *,
    tokenizer_folder: str | os.PathLike[str],
    maximum_tokens: int,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a Hugging Face and sentence-transformers folder of a ``PretrainingModel``'s weights.

    Weights keep their dtype. ``maximum_tokens`` is the length, special tokens included, at which
    sentence-transformers cuts a text. The folder appears whole or not at all: it is written beside its place
    and renamed. ModelError if it exists and is not empty, if weights are missing, or if the tokenizer does
    not fit.
    """
    folder, tokenizer_folder = Path(folder), Path(tokenizer_folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is not empty; remove it or choose another place")
    if not 3 <= maximum_tokens <= config.longest_document:
        raise ModelError(
            f"maximum_tokens {maximum_tokens} is not within 3 and {config.longest_document}, "
            f"what {config.positions} positions allow"
        )
    _check_tokenizer(tokenizer_folder, config)
    weights = to_theirs(state_dict, config)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_transformers(weights, config, partial, max_shard_bytes)
    for name in _TOKENIZER_FILES:
        if (tokenizer_folder / name).exists():
            shutil.copyfile(tokenizer_folder / name, partial / name)
    tokenizer = read_json(tokenizer_folder / "tokenizer_config.json") | {"model_max_length": maximum_tokens}
    _write_json(partial / "tokenizer_config.json", tokenizer)
    _write_sentence_transformers(config, partial, maximum_tokens)
    for path in partial.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


class ReopenedOutputs(NamedTuple):
    """What a written folder computes: N texts one after the other, T tokens in all, without padding."""

    token_ids: list[list[int]]  # N, special tokens included
    hidden: Tensor  # (T, D)
    logits: Tensor  # (T or fewer, V)
    sentence_vectors: Tensor  # (N, D), unit length


def reopened_outputs(
    folder: str | os.PathLike[str],
    texts: Sequence[str],
    maximum_tokens: int,
    *,
    texts_at_once: int = 16,
    logits_at: Tensor | None = None,
) -> ReopenedOutputs:
    """Open a written folder as anybody would, with transformers, and run ``texts`` in padded batches.

    Vectors are pooled as its modules.json says, by hand: sentence-transformers is not needed to train. With
    ``logits_at`` the logits are those of these tokens of the T: of all of them they can be larger than the model.
    The model is in memory once, not once without and once with its head.
    """
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    opening = {"local_files_only": True, "dtype": torch.float32}
    batches = [
        tokenizer(
            list(texts[first : first + texts_at_once]),
            padding=True,
            truncation=True,
            max_length=maximum_tokens,
            return_tensors="pt",
        )
        for first in range(0, len(texts), texts_at_once)
    ]
    with _quiet_transformers():
        encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, **opening).eval()
    ids, hidden, vectors = [], [], []
    for batch in batches:
        there = batch["attention_mask"].bool()
        with torch.no_grad():
            states = encoder(**batch).last_hidden_state
        ids += [row[mask].tolist() for row, mask in zip(batch["input_ids"], there, strict=True)]
        hidden.append(states[there])
        means = torch.stack([row[mask].mean(0) for row, mask in zip(states, there, strict=True)])
        vectors.append(torch.nn.functional.normalize(means, dim=-1))
    del encoder
    with _quiet_transformers():
        with_head = AutoModelForMaskedLM.from_pretrained(folder, **opening).eval()
    with torch.no_grad():
        states = torch.cat(
            [
                with_head.base_model(**batch).last_hidden_state[batch["attention_mask"].bool()]
                for batch in batches
            ]
        )
        logits = with_head.lm_head(states if logits_at is None else states[logits_at])
    return ReopenedOutputs(ids, torch.cat(hidden), logits, torch.cat(vectors))


def _write_transformers(
    weights: dict[str, Tensor], config: EncoderConfig, folder: Path, max_shard_bytes: int
) -> None:
    """config.json and the weights, in as many files as they need, with an index if there are several.

    Written here and not by transformers' save_pretrained, which needs the model's own code in memory.
    """
    from transformers import XLMRobertaConfig

    theirs = XLMRobertaConfig(
        vocab_size=config.vocabulary_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.feed_forward,
        hidden_act="gelu",
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=config.positions,
        type_vocab_size=1,
        initializer_range=config.initializer_std,
        layer_norm_eps=config.layer_norm_eps,
        pad_token_id=config.pad_id,
        bos_token_id=0,
        eos_token_id=2,
        architectures=["XLMRobertaForMaskedLM"],
        dtype=weights["lm_head.bias"].dtype,
    )
    theirs.save_pretrained(folder)
    files: list[list[str]] = [[]]
    for name, tensor in weights.items():
        if files[-1] and sum(weights[other].nbytes for other in files[-1]) + tensor.nbytes > max_shard_bytes:
            files.append([])
        files[-1].append(name)
    where: dict[str, str] = {}
    for number, names in enumerate(files, 1):
        file = (
            "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        shapes = {name: (weights[name].dtype, tuple(weights[name].shape)) for name in names}
        chunks = ((name, piece) for name in names for piece in pieces(weights[name]))
        write_tensors(folder / file, shapes, chunks, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(files) > 1:
        total = {"total_size": sum(tensor.nbytes for tensor in weights.values())}
        _write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": where})


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, and no report that an AutoModel leaves out the head that it is meant to leave out."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _write_sentence_transformers(config: EncoderConfig, folder: Path, maximum_tokens: int) -> None:
    # The layout of versions 2 to 5, which version 6 reads too; its own is not read by the earlier ones.
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {
        f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ("cls_token", "mean_tokens", "max_tokens")
    }
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": config.width, **pooling},
        "sentence_bert_config.json": {"max_seq_length": maximum_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    (folder / "2_Normalize").mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        _write_json(folder / name, content)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_tokenizer(folder: Path, config: EncoderConfig) -> None:
    if not (folder / "tokenizer.json").exists():
        raise ModelError(
            f"{folder} holds no tokenizer.json; give the tokenizer's folder, as in the token store"
        )
    content = read_json(folder / "tokenizer.json")
    vocabulary = content.get("model", {}).get("vocab", [])
    added = [token["id"] for token in content.get("added_tokens", [])]
    largest = max([len(vocabulary) - 1, *added])
    if largest >= config.vocabulary_size:
        raise ModelError(
            f"{folder}: the tokenizer has ids up to {largest}, the model's table has only "
            f"{config.vocabulary_size} rows; it is not the tokenizer this model was trained with"
        )


def _family(values: Mapping[str, Any], path: Path) -> str:
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ModelError(
            f"{path}: model_type is {family!r}; this encoder loads {' and '.join(FAMILIES)} "
            "(with XLM-R's vocabulary)"
        )
    return str(family)
