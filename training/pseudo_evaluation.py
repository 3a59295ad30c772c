"""BTMLM on held-out text, with pseudo tokens written anew by the current weights and with a frozen set of them.

The regenerated loss says what training sees, and moves with the pseudo tokens as well as with the model; the frozen one
moves with the model alone. The frozen tokens are those of the first evaluation at which the run has trained on BTMLM:
before that (an untrained model, a gate that is shut) they would be noise. They lie in the run folder, in
pseudo_tokens.npz, with the step at which they were written and a fingerprint of what they were written for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.batch import PackedBatch
from model.pretraining import PretrainingOutput
from objectives.back_translation import Generate, PseudoTokens, health_figures
from training.masked_scores import MaskedSet, scores_of, sums_of

FROZEN_FILE = "pseudo_tokens.npz"


class Frozen(NamedTuple):
    """Pseudo tokens that stay."""

    ids: np.ndarray  # (n,) int64, of all documents in their order
    step: int  # at whose evaluation they were written

    def write(self, run_folder: Path, fingerprint: str) -> None:
        """Keep them in the run folder; appears whole or not at all."""
        beside = run_folder / f".{FROZEN_FILE}"
        with beside.open("wb") as file:
            np.savez(file, ids=self.ids, step=self.step, fingerprint=fingerprint)
        beside.rename(run_folder / FROZEN_FILE)

    @classmethod
    def read(cls, run_folder: Path, fingerprint: str, last_step: int) -> Frozen | None:
        """Those that the run keeps; None if it has none for this set, or only of a step after ``last_step``.

        A run that goes on from an earlier step writes them again, when it comes there.
        """
        try:
            with np.load(run_folder / FROZEN_FILE) as kept:
                found = cls(kept["ids"], int(kept["step"]))
                fits = str(kept["fingerprint"]) == fingerprint
        except (OSError, ValueError, KeyError):
            return None
        return found if fits and found.step <= last_step else None


class PseudoEvaluation:
    """Held-out documents of BTMLM and how their pseudo tokens are written."""

    def __init__(self, masked: MaskedSet, pseudo: PseudoTokens, languages: Sequence[str]) -> None:
        """``masked`` holds documents of BTMLM alone, with their generation."""
        self._batches, self._names = masked
        self._pseudo = pseudo
        self._languages = languages
        self.frozen: Frozen | None = None
        generation = [batch.generation for batch in self._batches if batch.generation is not None]
        self._targets = torch.cat([g.language_ids[g.predicted] for g in generation]).numpy()
        digest = (
            hashlib.sha256()
        )  # of what is asked and what is predicted, however it is cut into microbatches
        for parts in (
            [g.token_ids for g in generation],
            [g.language_ids for g in generation],
            [batch.targets for batch in self._batches],
        ):
            digest.update(torch.cat(parts).numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def __call__(
        self,
        forward: Callable[[PackedBatch, bool], PretrainingOutput],
        generate: Generate,
        split: Callable[[list], Iterable],
        gather: Callable[[list], list],
        freeze_at: int | None = None,
    ) -> dict[str, float]:
        """``masked/btmlm/loss`` ..., ``masked/btmlm_frozen/loss`` ... once there are frozen tokens, ``pseudo/...``.

        ``freeze_at`` is the step of this evaluation if its pseudo tokens are to be kept where none are.
        """
        device = self._pseudo.scripts.of_ids.device
        ends = np.cumsum([len(batch.slots) for batch in self._batches])
        streams = len(self._names)
        found: list[tuple[int, tuple[np.ndarray, ...]]] = []
        for number, here in split(list(enumerate(self._batches))):
            batch = here.to(device)
            filled, health, _ = self._pseudo.write(generate, batch)
            parts = [filled.token_ids[filled.slots].cpu().numpy(), health.cpu().numpy()]
            parts.append(sums_of(forward(filled, False), filled, streams))
            if self.frozen is not None:
                kept = self.frozen.ids[ends[number] - len(batch.slots) : ends[number]]
                frozen = batch.filled(torch.from_numpy(kept).to(device))
                parts.append(sums_of(forward(frozen, False), frozen, streams))
            found.append((number, tuple(parts)))
        by_number = dict(gather(found))  # the split repeats some, to give every rank as many
        ids, healths, *sums = (
            list(part) for part in zip(*(by_number[n] for n in sorted(by_number)), strict=True)
        )
        written = np.concatenate(ids)
        if freeze_at is not None and self.frozen is None:
            self.frozen = Frozen(written, freeze_at)
            sums.append(sums[0])
        scores = scores_of(np.sum(sums[0], axis=0), self._names)
        if self.frozen is not None:
            names = [name.replace("btmlm/", "btmlm_frozen/") for name in self._names]
            scores |= scores_of(np.sum(sums[1], axis=0), names)
        return (
            scores | health_figures(np.sum(healths, axis=0), self._languages) | self._distinct_of_all(written)
        )

    def _distinct_of_all(self, written: np.ndarray) -> dict[str, float]:
        """``pseudo/distinct_1_of_all``: different ids in a language's texts together: shows one word for all."""
        figures = {}
        for number in np.unique(self._targets):
            ids = written[self._targets == number]
            figures[f"pseudo/distinct_1_of_all/{self._languages[number]}"] = len(np.unique(ids)) / len(ids)
        return {"pseudo/distinct_1_of_all": float(np.mean(list(figures.values()))), **figures}
