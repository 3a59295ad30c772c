"""datasets and transformers: a shuffled DataLoader whose collator pads and masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.contestants import texts_of


def batches(folder: Path, batch: int, joined: int = 0) -> Iterator[int]:
    """Tokens of each batch; ``joined``: the texts end to end, cut into pieces of so many tokens (run_mlm.py)."""
    import datasets
    import numpy as np

    ids, ends = texts_of(folder)
    if joined:
        ends = np.arange(joined, len(ids) + 1, joined)
    columns = {"input_ids": [part.tolist() for part in np.split(ids[: ends[-1]], ends[:-1])]}
    # With it the collator need not look for special tokens; without a format lists are faster than arrays.
    columns["special_tokens_mask"] = [[int(i in (0, 2)) for i in part] for part in columns["input_ids"]]
    place = folder / f"datasets-{batch}-{joined}"
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).save_to_disk(place)
    return loaded(datasets.load_from_disk(place), folder, batch, shuffle=True)


def loaded(dataset: Any, folder: Path, batch: int, **options: Any) -> Iterator[int]:
    """Tokens of the batches of ``dataset``, epoch after epoch."""
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    while True:
        for made in DataLoader(dataset, batch_size=batch, collate_fn=collator, **options):
            yield int(made["attention_mask"].sum()) if "attention_mask" in made else made["input_ids"].numel()
