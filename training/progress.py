"""What a step was like, in the numbers that telemetry shows; and the tokens that the run has spent and was due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.sampling import Stream
from data.shares import Mix
from data.tally import Tally
from objectives.back_translation import health_figures
from training.config import Recipe
from training.engine import StepOutcome
from training.step import StepLosses

MIXED = "mixed_alignment"
_WINDOW = 20  # steps over which speed is averaged


class Progress:
    """Turns tallies and losses into named scalars. Its only state is the tokens spent and due per stream."""

    def __init__(self, streams: Sequence[Stream], recipe: Recipe, languages: Sequence[str] = ()) -> None:
        """Nothing is spent yet. ``languages`` are the names of those that pseudo tokens are written in, by number."""
        self._languages = languages
        self._steps = recipe.steps
        self._step_tokens = recipe.batch.step_tokens
        self._loss_weights = {name: task.loss_weight for name, task in recipe.tasks.enabled().items()}
        riding = recipe.tasks.in_batch_margin
        self._in_batch_weight = 0.0 if riding is None else riding.loss_weight
        self._of_task = {
            task: np.array([i for i, stream in enumerate(streams) if stream.task.name == task])
            for task in self._loss_weights
        }
        self._of_language: dict[tuple[str, str], list[int]] = {}
        for i, stream in enumerate(streams):
            for language in stream.languages:
                self._of_language.setdefault((stream.task.name, language), []).append(i)
        self._spent = np.zeros(len(streams), dtype=np.int64)
        self._due = np.zeros(len(streams), dtype=np.int64)  # millionths of tokens, by the shares of each step
        self.stage: int | None = None  # of the sampling
        self._before_stage = np.zeros((2, len(streams)), dtype=np.int64)  # spent and due
        self._recent: list[tuple[float, int]] = []  # seconds and tokens of the last steps

    def spent(self, task: str) -> int:
        """The tokens of ``task`` so far."""
        return int(self._spent[self._of_task[task]].sum())

    def state(self) -> dict[str, Any]:
        """Plain integers."""
        before = self._before_stage.tolist()
        return {
            "spent": self._spent.tolist(),
            "due": self._due.tolist(),
            "stage": self.stage,
            "before_stage": before,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``."""
        self._spent = np.array(state["spent"], dtype=np.int64)
        self._due = np.array(state["due"], dtype=np.int64)
        self.stage = state["stage"]
        self._before_stage = np.array(state["before_stage"], dtype=np.int64)

    @property
    def tokens(self) -> int:
        """What the run has spent."""
        return int(self._spent.sum())

    def begin_stage(self, stage: int) -> None:
        """Count for ``stage`` from here on, if that is not so already."""
        if self.stage != stage:
            self.stage, self._before_stage = stage, np.stack([self._spent, self._due])

    def of_stage(self) -> dict[str, tuple[float, float]]:
        """task -> (share, due share) of the tokens of the stage so far."""
        spent, due = np.stack([self._spent, self._due]) - self._before_stage
        return {task: _shares(spent, due, members, spent.sum()) for task, members in self._of_task.items()}

    def of_languages(self) -> dict[str, tuple[float, float]]:
        """task/language -> (share, due share) of the task's tokens; a pair counts for both of its languages."""
        return {
            f"{task}/{language}": _shares(
                self._spent, self._due, np.array(members), self._spent[self._of_task[task]].sum()
            )
            for (task, language), members in self._of_language.items()
        }

    def scalars(
        self,
        step: int,
        tally: np.ndarray,
        losses: StepLosses,
        outcome: StepOutcome,
        rate: float,
        mix: Mix,
        *,
        health: np.ndarray | None = None,
        seconds: float,
        waited: float,
        memory_gib: float,
    ) -> dict[str, float]:
        """The step's numbers by name; a language's loss is over all pairs that it stands in.

        ``health`` (L, len(Health)) is that of the pseudo tokens, where the step has any.
        """
        tokens = tally[:, Tally.TOKENS]
        self._spent += tokens
        self._due += np.floor(mix.shares * (int(tokens.sum()) * 1_000_000)).astype(np.int64)
        self._recent = [*self._recent[1 - _WINDOW :], (seconds, int(tokens.sum()))]
        window = sum(s for s, _ in self._recent)
        spent = int(self._spent.sum())
        scalars: dict[str, float] = {"step": step, "tokens": spent}
        means = {task: _mean(losses.sums, losses.terms, members) for task, members in self._of_task.items()}
        scalars["loss"] = sum(self._loss_weights[task] * mean for task, mean in means.items() if mean == mean)
        scalars |= {f"loss/{task}": mean for task, mean in means.items()}
        scalars |= self._in_batch(losses)
        scalars["loss"] += self._in_batch_weight * scalars.get("loss/in_batch_margin", 0.0)
        scalars |= {
            "learning_rate": rate,
            "grad_norm": outcome.gradient_norm,
            "temperature": losses.temperature,
            "tokens_per_second": sum(t for _, t in self._recent) / window,
            "step_seconds": seconds,
            "data_wait_seconds": waited,
            "packing_efficiency": int(tokens.sum()) / self._step_tokens,
            "memory_gib": memory_gib,
            "eta_seconds": (self._steps - step) * window / len(self._recent),
            "sampling/stage": mix.stage + 1,
            "sampling/language_temperature": mix.language_temperature,
            "sampling/pair_temperature": mix.pair_temperature,
        }
        for task, members in self._of_task.items():
            scalars[f"share/{task}"] = int(self._spent[members].sum()) / max(1, spent)
            scalars[f"budget/{task}"] = int(self._due[members].sum()) / (1_000_000 * max(1, spent))
            scalars[f"sampling/budget/{task}"] = float(mix.shares[members].sum())
            scalars[f"accuracy/{task}"] = _mean(losses.correct, losses.terms, members)
        scalars |= self._mixing(tally)
        if health is not None:
            scalars |= health_figures(health, self._languages)
        for (task, language), found in self._of_language.items():
            mean = _mean(losses.sums, losses.terms, np.array(found))
            if mean == mean:
                scalars[f"loss/{task}/{language}"] = mean
        return scalars

    def _in_batch(self, losses: StepLosses) -> dict[str, float]:
        """Of the margin on the pairs of the pool, whole and by language; nothing where no pair had a part in it."""
        if losses.in_batch is None or not losses.in_batch[1].any():
            return {}
        sums, terms, correct = losses.in_batch
        everything = np.arange(len(sums))
        by_language: dict[str, list[int]] = {}
        for (_, language), members in self._of_language.items():
            by_language.setdefault(language, []).extend(members)
        scalars = {
            "loss/in_batch_margin": _mean(sums, terms, everything),
            "accuracy/in_batch_margin": _mean(correct, terms, everything),
        }
        for language, found in by_language.items():
            mean = _mean(sums, terms, np.array(found))
            if mean == mean:
                scalars[f"loss/in_batch_margin/{language}"] = mean
        return scalars

    def _mixing(self, tally: np.ndarray) -> dict[str, float]:
        """How mixed the mixed-language texts of the step were, in all and per language of the original."""
        members = self._of_task.get(MIXED)
        if members is None:
            return {}
        total = tally[members].sum(axis=0)
        rejected = tally[:, Tally.REJECTED] + tally[:, Tally.ONE_LANGUAGE]
        scalars = {
            "mixed/rejected": float(rejected[members].sum()),
            "mixed/one_language": float(
                total[Tally.ONE_LANGUAGE]
            ),  # of the rejected, by what the model wrote
        }
        records = int(rejected[members].sum() + total[Tally.PAIRS])
        if records:
            scalars["mixed/rejected_share"] = rejected[members].sum() / records
        for (task, language), found in self._of_language.items():
            if task == MIXED and rejected[found].any():
                scalars[f"mixed/rejected/{language}"] = float(rejected[found].sum())
                scalars[f"mixed/one_language/{language}"] = float(tally[found, Tally.ONE_LANGUAGE].sum())
        texts = total[Tally.MIXED]
        if not texts:
            return scalars
        scalars |= {
            "mixed/realised_rate": total[Tally.REPLACED] / total[Tally.TRANSLATABLE],
            "mixed/share_of_words": total[Tally.REPLACED] / total[Tally.WORDS],
            "mixed/languages": total[Tally.LANGUAGES] / texts,
            "mixed/cut": float(total[Tally.CUT]),
            "mixed/overlap": total[Tally.OVERLAP] / 1e6 / total[Tally.PAIRS],
        }
        if total[Tally.BASELINE_ROWS]:
            baseline = total[Tally.BASELINE_CORRECT] / total[Tally.BASELINE_ROWS]
            scalars["mixed/bag_of_words_accuracy"] = baseline
        for column in (Tally.BY_DICTIONARY, Tally.BY_PHRASE, Tally.BY_SENTENCE, Tally.BY_PSEUDO_TOKENS):
            if total[column]:
                name = column.name.removeprefix("BY_").lower()
                scalars[f"mixed/generator/{name}"] = total[column] / texts
        for (task, language), found in self._of_language.items():
            of_language = tally[found].sum(axis=0)
            if task == MIXED and of_language[Tally.TRANSLATABLE]:
                rate = of_language[Tally.REPLACED] / of_language[Tally.TRANSLATABLE]
                scalars[f"mixed/realised_rate/{language}"] = rate
        return scalars


def _shares(spent: np.ndarray, due: np.ndarray, members: np.ndarray, total: int) -> tuple[float, float]:
    """What ``members`` spent and were due, as parts of ``total`` tokens."""
    whole = max(1, int(total))
    return int(spent[members].sum()) / whole, int(due[members].sum()) / (1_000_000 * whole)


def _mean(sums: np.ndarray, terms: np.ndarray, members: np.ndarray) -> float:
    count = terms[members].sum()
    return float(sums[members].sum() / count) if count else float("nan")
