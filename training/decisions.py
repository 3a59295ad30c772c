"""What evaluations decide about the run: gates that open, budgets that move, the end by convergence.

    figures of an evaluation ─▶ gate of BTMLM, rule of convergence ─▶ planner.decide ─▶ shares of later steps

Only evaluations that stand in the schedule decide (before the first step, and every ``evaluation.every`` steps): a run
that is asked for more steps later goes the way of one that was asked for them at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from data.planner import Planner
from data.recipe import UserError
from data.sampling import Stream
from data.settings.tasks import gates_of
from training.config import Recipe
from training.convergence import Convergence, Judgement, TaskJudgement
from training.metrics import Telemetry


class Decisions:
    """Holds the rule of convergence and opens gates; the planner records what they decide."""

    def __init__(self, recipe: Recipe, streams: list[Stream], planner: Planner, telemetry: Telemetry) -> None:
        """Nothing is decided."""
        config = recipe.convergence
        self._config, self._planner, self._telemetry = config, planner, telemetry
        self._tasks = [stream.task.name for stream in streams]
        self._gates = {
            name: gate.camlm_accuracy
            for name, gate in gates_of(recipe.tasks).items()
            if gate.camlm_accuracy is not None
        }
        self._every = recipe.evaluation.every
        self._rule = None
        if config is not None:
            self._rule = Convergence(config, config.bilingual, monolingual_task(recipe))
        self._seen = -1  # the step of the last evaluation that was taken

    @property
    def complete_since(self) -> int | None:
        """The step after which both tasks had converged, if that ends the run."""
        stops = self._config is not None and self._config.stop
        return self._rule.complete_since if stops and self._rule is not None else None

    def waits_for(self, step: int) -> bool:
        """Whether the evaluation after ``step`` has a say and was not taken."""
        return (self._rule is not None or bool(self._gates)) and self._scheduled(step) and self._seen < step

    def take(self, step: int, tokens: int, scores: Mapping[str, float]) -> None:
        """Decide on the figures of the evaluation after ``step``, when ``tokens`` were spent."""
        if not self.waits_for(step):
            return
        self._seen = step
        self._open_gates(step, scores)
        if self._rule is None or self._config is None:
            return
        missing = [f"masked/{task}/loss" for task in self._rule.tasks if f"masked/{task}/loss" not in scores]
        if missing:
            raise UserError(
                f"the rule of convergence needs {' and '.join(missing)}, which the corpora of evaluation.masked do not"
                " give: name held-out rows in English and other languages."
            )
        if step == 0:
            return
        shares = self._planner.mix(step + 1).shares
        trained = {task for task, share in zip(self._tasks, shares, strict=True) if share > 0}
        before, complete_before = dict(self._rule.converged), self._rule.complete_since
        # Frozen pseudo tokens are there once BTMLM has been trained; before, it is not judged.
        losses = {task: scores.get(self._config.score(task), math.nan) for task in self._rule.tasks}
        judgement = self._rule.update(step, tokens, losses, trained)
        for name, value in judgement.moved.items():
            self._planner.decide(name, value, step)
        first = complete_before is None and judgement.complete
        if first or judgement.moved or self._rule.converged != before:
            self._report(step, tokens, judgement)

    def state(self) -> dict[str, Any]:
        """Plain values; what was decided stands in the planner's."""
        return {"seen": self._seen, "convergence": self._rule.state() if self._rule else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``."""
        self._seen = int(state["seen"])
        if self._rule is not None and state["convergence"] is not None:
            self._rule.restore(state["convergence"])

    def _scheduled(self, step: int) -> bool:
        return step == 0 or (self._every > 0 and step % self._every == 0)

    def _open_gates(self, step: int, scores: Mapping[str, float]) -> None:
        accuracy = scores.get("masked/camlm/accuracy", 0.0)
        for task, threshold in self._gates.items():
            if accuracy >= threshold and f"gate/{task}" not in self._planner.decided():
                self._planner.decide(f"gate/{task}", 1, step)
                self._telemetry.event("gate", step=step, task=task, camlm_accuracy=accuracy)
                self._telemetry.say(f"  {task} begins: held-out CAMLM accuracy {100 * accuracy:.1f} %")

    def _report(self, step: int, tokens: int, judgement: Judgement) -> None:
        assert self._config is not None
        tasks = {task: found._asdict() for task, found in judgement.tasks.items()}
        self._telemetry.event(
            "convergence", step=step, tokens=tokens, complete=judgement.complete, moved=judgement.moved,
            stops=judgement.complete and self._config.stop, **tasks,
        )  # fmt: skip
        said = [_sentence(task, found, self._config.window) for task, found in judgement.tasks.items()]
        for name, part in judgement.moved.items():
            _, giver, taker = name.split("/")
            gives = (
                f"gives {100 * part:.0f} % of its budget to {taker}" if part else "has its whole budget again"
            )
            said.append(f"{giver} {gives}")
        self._telemetry.say("  " + "; ".join(said))


def _sentence(task: str, found: TaskJudgement, window: int) -> str:
    text = f"{task} {'has converged' if found.converged else 'has not converged'}"
    if not math.isfinite(found.improvement):
        return text
    return (
        f"{text} (smoothed held-out loss {found.smoothed:.4f}, {100 * found.improvement:.2f} % better than"
        f" {window} evaluations ago)"
    )


def monolingual_task(recipe: Recipe) -> str:
    """The monolingual task that the rule of convergence looks at."""
    assert recipe.convergence is not None
    named = recipe.convergence.monolingual
    return named or ("btmlm" if "btmlm" in recipe.tasks.enabled() else "mmlm")
