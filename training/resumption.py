"""What of a run is saved beside its weights, when a run may go on from it, and how it does.

run.json: step, store, teachers, settings, encoder; the states of planner, progress, margins and decisions.
The world is not in it: ranks, tensor ranks and ZeRO stage may be others when the run goes on.
"""

from __future__ import annotations

from typing import Any

from data.inputs import differences
from data.planner import Planner
from data.recipe import UserError
from model.config import EncoderConfig
from training.build import DataParts
from training.checkpoint import Found
from training.config import Recipe, settings_of_a_run
from training.decisions import Decisions
from training.margins import Margins
from training.progress import Progress


def state_of_run(
    step: int,
    recipe: Recipe,
    data: DataParts,
    encoder: EncoderConfig,
    planner: Planner,
    progress: Progress,
    margins: Margins,
    decisions: Decisions,
) -> dict[str, Any]:
    """What run.json holds after ``step``."""
    return {
        "step": step,
        "store": data.store.fingerprint,
        "settings": settings_of_a_run(recipe),
        "encoder": encoder.model_dump(),
        "planner": planner.state(),
        "progress": progress.state(),
        "margins": margins.state(),
        "taught": data.taught.fingerprints,
        "decisions": decisions.state(),
    }


def state_to_go_on_from(found: Found, recipe: Recipe, data: DataParts) -> dict[str, Any]:
    """The state in the checkpoint ``found``.

    Raises:
        UserError: this run would go on differently; names everything in which it differs.

    """
    state = found.run_state()
    problems = []
    if state["store"] != data.store.fingerprint:
        problems.append(f"the data: {recipe.store} is not the store that the run was trained on")
    for task, fingerprint in data.taught.fingerprints.items():
        if state.get("taught", {}).get(task) != fingerprint:
            problems.append(f"tasks.{task}.teacher: not the vectors or scores that the run was trained on")
    problems += differences(state["settings"], settings_of_a_run(recipe))
    if problems:
        raise UserError(
            "\n  ".join([f"{found.path} can not be continued, since the run would go on differently. Put it back,"
                         " or start another run (--set name=...):", *problems])
        )  # fmt: skip
    return state


def restore(
    found: Found, state: dict[str, Any], planner: Planner, progress: Progress, margins: Margins
) -> int:
    """Set planner, progress and margins to what ``state`` says; return its step.

    Raises:
        UserError: the state is none that can be gone on from.

    """
    try:
        planner.restore(state["planner"])
        progress.restore(state["progress"])
        margins.restore(state.get("margins", {}))
    except (LookupError, TypeError, ValueError, AttributeError) as fault:
        raise UserError(
            f"{found.path}: run.json holds no state that can be gone on from ({fault!r})"
        ) from None
    return int(state["step"])
