"""Who is measured: each turns the texts of a folder into batches without end, and says how many tokens each holds.

A folder holds texts.npy (int32 ids of all texts end to end, <s> and </s> included), ends.npy (int64), tokenizer/ and,
for Calque, request.json. A contestant converts the texts to its own form once, which is not timed.

Neither this file nor those of the others import anything else at the top: they run under whatever interpreter has it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Contestant(NamedTuple):
    """A row of the table."""

    title: str
    batches: str  # module:function, (folder, options) -> tokens of each batch, padding not counted
    options: dict[str, Any]
    alike: bool  # masked batches of the same texts as documents of their own; the others stand beside for information

    def start(self, folder: Path) -> Iterator[int]:
        """Begin; raises ImportError where the library is missing."""
        module, function = self.batches.split(":")
        begin: Callable[..., Iterator[int]] = getattr(
            importlib.import_module(f"benchmarks.data.{module}"), function
        )
        return begin(folder, **self.options)


_OURS: dict[str, dict[str, Any]] = {
    "masks": {"mmlm": {}},
    "mixed": {"mmlm": {}, "mixed_alignment": {}},
    "tasks": {"mmlm": {}, "tlm": {}, "camlm": {}, "translation_alignment": {}, "mixed_alignment": {}},
}

CONTESTANTS: dict[str, Contestant] = {
    "calque-masks": Contestant("Calque, masks", "calque:batches", {"tasks": _OURS["masks"]}, True),
    "calque-mixed": Contestant(
        "Calque, masks and mixed language", "calque:batches", {"tasks": _OURS["mixed"]}, True
    ),
    "calque-tasks": Contestant("Calque, every task", "calque:batches", {"tasks": _OURS["tasks"]}, True),
    "datasets": Contestant(
        "datasets + DataCollatorForLanguageModeling", "hugging_face:batches", {"batch": 32}, True
    ),
    "datasets-large": Contestant(
        "the same, 256 texts a batch", "hugging_face:batches", {"batch": 256}, True
    ),
    "streaming": Contestant(
        "MosaicML streaming + DataCollatorForLanguageModeling", "mosaic:batches", {"batch": 32}, True
    ),
    "megatron": Contestant("Megatron-Core, BERT's masked dataset", "megatron:masked", {"batch": 32}, True),
    "megatron-gpt": Contestant(
        "Megatron-Core, GPTDataset: no masks, texts joined and cut to 512", "megatron:joined",
        {"batch": 8, "length": 512}, False,
    ),
    "datasets-joined": Contestant(
        "datasets + collator, texts joined and cut to 512", "hugging_face:batches",
        {"batch": 16, "joined": 512}, False,
    ),
}  # fmt: skip

OURS = tuple(name for name in CONTESTANTS if name.startswith("calque-"))
OTHERS = tuple(name for name, one in CONTESTANTS.items() if one.alike and name not in OURS)


def texts_of(folder: Path) -> tuple[Any, Any]:
    """(ids of all texts end to end, ends (n,))."""
    import numpy as np

    return np.load(folder / "texts.npy"), np.load(folder / "ends.npy")


def request_of(folder: Path) -> dict[str, Any]:
    """What was asked of Calque: recipe and settings."""
    found: dict[str, Any] = json.loads((folder / "request.json").read_text())
    return found
