"""The documents of a step one by one, and the padded batches of them that other trainers make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.step.problem import Problem, Work
from benchmarks.step.run import first_step, recipe_of, work_of
from data.microbatch import Microbatch
from training.build import open_data

_PAD, _IGNORED = 1, -100


class Read(NamedTuple):
    """A document as the run reads it."""

    ids: np.ndarray  # (n,)
    labels: np.ndarray  # (n,) what is predicted there, _IGNORED where nothing is


class Documents(NamedTuple):
    """All documents of a step, the pairs among them, and the work that they are."""

    read: list[Read]
    pairs: list[tuple[int, int]]
    work: Work
    written: list[int]  # tokens of those in which the run writes pseudo tokens beforehand


def documents_of(problem: Problem) -> Documents:
    """Those of the problem's step, over all ranks and microbatches."""
    recipe = recipe_of(problem._replace(microbatches=1), 1)
    data = open_data(recipe)
    (microbatch,) = first_step(recipe, data)
    return _taken_apart(microbatch)


def _taken_apart(microbatch: Microbatch) -> Documents:
    arrays, work = microbatch.arrays, work_of(microbatch.tally, [microbatch])
    # Pseudo tokens are placeholders here: writing them is left to the run alone.
    ids, labels = arrays["token_ids"], np.full(len(arrays["token_ids"]), _IGNORED)
    labels[arrays["predicted"]] = arrays["targets"]
    starts = arrays["document_starts"]
    kept = slice(0, None if starts[-1] == work.tokens else -1)  # without the padding tail
    bounds = list(zip(starts[:-1], starts[1:], strict=True))[kept]
    read = [Read(ids[start:end], labels[start:end]) for start, end in bounds]
    written = np.diff(arrays["generation"]["document_starts"]) if arrays["generation"] else np.empty(0)
    return Documents(read, [(int(a), int(b)) for a, b in arrays["pairs"]], work, [int(n) for n in written])


def in_turn(documents: Sequence[Read], batch: int) -> list[list[Read]]:
    """Batches of ``batch`` documents in random order, as a trainer draws them."""
    order = np.random.default_rng(1).permutation(len(documents))
    return _cut([documents[i] for i in order], batch)


def by_length(documents: Sequence[Read], batch: int) -> list[list[Read]]:
    """Batches of ``batch`` documents of like length: sorted over the whole step."""
    return _cut(sorted(documents, key=lambda document: -len(document.ids)), batch)


def padded(batch: Sequence[Read]) -> dict[str, Tensor]:
    """Token ids, mask and labels (documents, longest), as a collator with padding to the longest makes them."""
    longest = max(len(document.ids) for document in batch)
    columns = {"input_ids": _PAD, "attention_mask": 0, "labels": _IGNORED}
    arrays = {name: np.full((len(batch), longest), fill) for name, fill in columns.items()}
    for row, document in enumerate(batch):
        arrays["input_ids"][row, : len(document.ids)] = document.ids
        arrays["attention_mask"][row, : len(document.ids)] = 1
        arrays["labels"][row, : len(document.ids)] = document.labels
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _cut(documents: Sequence[Read], batch: int) -> list[list[Read]]:
    return [list(documents[first : first + batch]) for first in range(0, len(documents), batch)]
