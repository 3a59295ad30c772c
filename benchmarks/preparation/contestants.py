"""The ways from JSON Lines to ids on disk, each a function of the folder that returns how many tokens it wrote."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def calque(folder: Path) -> int:
    """The whole preparation, of a store that is not there yet."""
    from benchmarks.preparation.corpus import config_of
    from data.preparation import prepare

    shutil.rmtree(folder / "store", ignore_errors=True)
    config = config_of(folder, "store", {"path": str(folder / "tokenizer")})
    store = prepare(config, workers=1, say=lambda message: None)
    return int(store.manifest["corpora"]["text"]["tokens"])


def megatron(folder: Path) -> int:
    """Line by line, the tokenizer called through transformers, as Megatron-LM does."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"))
    return _line_by_line(folder, lambda text: tokenizer(text, add_special_tokens=False).input_ids)


def megatron_direct(folder: Path) -> int:
    """Line by line, the tokenizer called directly."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    return _line_by_line(folder, lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def hugging_face(folder: Path) -> int:
    """datasets: JSON to Arrow, then map in batches with the fast tokenizer."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"))
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        rows = datasets.load_dataset(
            "json", data_files=str(folder / "text.jsonl"), cache_dir=cache, split="train"
        )
        made = rows.map(
            lambda batch: {"ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
            batched=True,
            remove_columns=rows.column_names,
        )
        return sum(map(len, made.with_format("numpy")["ids"]))


def _line_by_line(folder: Path, encode: Callable[[str], list[int]]) -> int:
    import numpy as np

    from benchmarks.preparation.builder import builder

    made = builder()(str(folder / "text.bin"), dtype=np.int32)
    tokens = 0
    with (folder / "text.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            ids = encode(json.loads(line)["text"])
            if ids:
                made.add_document(ids, [len(ids)])
                tokens += len(ids)
    made.finalize(str(folder / "text.idx"))
    return tokens


CONTESTANTS: dict[str, Callable[[Path], int]] = {
    "Calque": calque,
    "Megatron-LM's way": megatron,
    "the same, tokenizers called directly": megatron_direct,
    "datasets.map, batched": hugging_face,
}
