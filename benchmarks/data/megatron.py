"""Megatron-Core: its IndexedDataset with BERT's masked dataset, and with GPT's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.data.contestants import texts_of


def masked(folder: Path, batch: int) -> Iterator[int]:
    """Tokens of each batch of BERTMaskedWordPieceDataset: every text a document of one sentence."""
    from megatron.core.datasets.bert_dataset import (
        BERTMaskedWordPieceDataset,
        BERTMaskedWordPieceDatasetConfig,
    )

    prefix = _written(folder, "masked", specials=False)
    config = BERTMaskedWordPieceDatasetConfig(
        random_seed=1, sequence_length=128, split="1", path_to_cache=str(folder / "masked-cache"),
        tokenizer=_tokenizer(folder), mid_level_dataset_surplus=0.005, classification_head=False,
        masking_probability=0.15, short_sequence_probability=0.0, masking_max_ngram=1,
        masking_do_full_word=False, masking_do_permutation=False, masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False,
    )  # fmt: skip
    return _batches(BERTMaskedWordPieceDataset, config, prefix, batch, "padding_mask")


def joined(folder: Path, batch: int, length: int) -> Iterator[int]:
    """Tokens of each batch of GPTDataset, which joins the texts and cuts them to ``length``."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    prefix = _written(folder, "joined", specials=True)
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=length, split="1", path_to_cache=str(folder / "joined-cache"),
        tokenizer=_tokenizer(folder), mid_level_dataset_surplus=0.005, reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    return _batches(GPTDataset, config, prefix, batch, None)


def _written(folder: Path, name: str, *, specials: bool) -> str:
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    ids, ends = texts_of(folder)
    prefix = str(folder / name)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for part in np.split(ids, ends[:-1]):
        builder.add_document(
            torch.from_numpy(part if specials else part[1:-1]), [len(part) - 2 * (not specials)]
        )
    builder.finalize(f"{prefix}.idx")
    return prefix


def _tokenizer(folder: Path) -> Any:
    """What Megatron asks of a tokenizer, over the one in the folder."""
    from tokenizers import Tokenizer

    whole = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    pieces = {number: piece for piece, number in whole.get_vocab().items()}
    return SimpleNamespace(
        cls=0, pad=1, sep=2, eod=2, mask=max(pieces), inv_vocab=pieces, vocab_size=len(pieces),
        unique_identifiers={"tokenizer": "calque"},
    )  # fmt: skip


def _batches(kind: Any, config: Any, prefix: str, batch: int, mask: str | None) -> Iterator[int]:
    import numpy as np
    import torch
    from megatron.core.datasets.utils import Split
    from torch.utils.data import DataLoader

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    texts = kind.build_low_level_dataset(prefix, config)
    count = kind.numel_low_level_dataset(texts)
    dataset = kind(texts, prefix, np.arange(count, dtype=np.int32), count, Split.train, config)
    while True:
        for made in DataLoader(dataset, batch_size=batch, shuffle=True):
            yield int(made[mask].sum()) if mask else made["tokens"].numel()
