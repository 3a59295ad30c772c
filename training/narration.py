"""Narration: what a run says of itself on the console and writes to events.jsonl, beside the lines of its steps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kernels.implementation import taken_by_auto
from training.config import Recipe
from training.engine import Engine, World
from training.metrics import Telemetry
from training.start_up import StartUp


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices; where not, torch does it by a loop."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Narration:
    """Turns what happens to a run into sentences and events."""

    def __init__(self, telemetry: Telemetry, recipe: Recipe, folder: Path) -> None:
        """``folder`` is the run's."""
        self._telemetry = telemetry
        self._recipe = recipe
        self._folder = folder

    def introduce(
        self, parameters: int, streams: int, engine: Engine, world: World, fresh: list[str] | None
    ) -> None:
        """Size, shards and steps; ``fresh``: weights that the folder to start from did not have, None if resumed."""
        recipe = self._recipe
        shared = f" of {world.tensor.size} tensor ranks each" if world.tensor.size > 1 else ""
        self._telemetry.say(
            f"run {self._folder}: {parameters / 1e6:.1f} M parameters, ZeRO-{engine.stage} over {world.ranks}"
            f" rank(s){shared} on {world.device.type}, {recipe.precision}; {recipe.steps} steps of"
            f" {recipe.batch.step_tokens:,} tokens, {engine.accumulation} microbatch(es) a rank;"
            f" {streams} streams"
        )
        if world.device.type == "cpu" and recipe.precision == "bf16" and not has_bf16():
            self._telemetry.say(
                "this processor has no instructions for bf16: its products take several times as long as in fp32;"
                " --set precision=fp32 trains faster here"
            )
        here = int(os.environ.get("LOCAL_SIZE", "1"))
        if here > 1 and here % world.tensor.size:
            self._telemetry.say(
                f"parallel.tensor {world.tensor.size} does not divide the {here} ranks of a machine: some models lie on"
                " several machines, and their ranks talk over the network in every layer"
            )
        if recipe.model.start_from is not None and fresh is not None:
            what = f"not found there and fresh: {', '.join(fresh)}" if fresh else "all of it"
            self._telemetry.say(f"started from {recipe.model.start_from}, {what}")

    def resumed(self, path: Path, step: int, faults: list[str]) -> None:
        """From which checkpoint; ``faults`` are those of newer ones that were passed over."""
        for fault in faults:
            self._telemetry.say(f"passed over a damaged checkpoint: {fault}")
        self._telemetry.say(f"resuming from {path} (step {step} of {self._recipe.steps})")
        if step >= self._recipe.steps:
            self._telemetry.say("every step is done; for more of them: --set steps=N")
        self._telemetry.event("resume", step=step, path=path, passed_over=faults)

    def started(self, step: int, start: StartUp) -> None:
        """``step``, the first of this start, is done: where the time went until then, and what "auto" took in it."""
        seconds = {part: round(took, 2) for part, took in start.seconds.items()}
        busy = {part: round(worked, 2) for part, worked in start.busy.items()}
        self._telemetry.event("start_up", step=step, seconds=seconds, busy=busy, total=round(start.total, 2))
        parts = ", ".join(f"{part} {took:.1f}" for part, took in seconds.items() if took >= 0.05)
        self._telemetry.say(f"{start.total:.1f} s from the launch to the end of step {step}: {parts}")
        if taken := taken_by_auto():
            what = ", ".join(f"{operation} {implementation}" for operation, implementation in taken.items())
            self._telemetry.say(f"implementations that auto took: {what}")

    def not_saved(self, step: int, faults: list[str]) -> None:
        """The disk did not take the checkpoint of ``step``; it may not take the event either."""
        self._telemetry.say(
            f"step {step} could not be saved and training goes on; the next save is tried when it is due:"
            f" {'; '.join(faults)}"
        )
        try:
            self._telemetry.event("save_failed", step=step, faults=faults)
        except OSError as fault:
            self._telemetry.say(f"  nor could that be written to events.jsonl: {fault}")

    def stopped(self, step: int, why: str) -> None:
        """Somebody asked for it."""
        self._telemetry.event("stop", step=step, reason=why)
        self._telemetry.say(f"stopped after step {step} ({why}); the same command goes on from there")

    def stage_ended(self, step: int, number: int, shares: Mapping[str, tuple[float, float]]) -> None:
        """After ``step``; task -> the share of the stage's tokens that it had, and that it was due."""
        self._telemetry.event("stage", step=step, ended=number, shares=shares)
        said = [f"{task} {share:.1%} (due {due:.1%})" for task, (share, due) in shares.items()]
        self._telemetry.say(f"stage {number} of the sampling has ended: {', '.join(said)}")

    def evaluated(self, step: int, scores: Mapping[str, Any], seconds: float) -> None:
        """The means of the retrieval sets and the accuracies of the masked tasks."""
        self._telemetry.evaluation(step, scores)
        means = [
            f"{name.removesuffix('/mean').split('/')[-1]} {100 * value:.1f} %"
            for name, value in scores.items()
            if name.endswith("/mean")
        ]
        tasks = ("mmlm", "camlm", "camlm_control", "btmlm")
        means += [
            f"{task} {100 * scores[f'masked/{task}/accuracy']:.1f} %"
            for task in tasks
            if f"masked/{task}/accuracy" in scores
        ]
        self._telemetry.say(f"  retrieval and masked accuracy: {', '.join(means)} ({seconds:.0f} s)")

    def completed(self, step: int, reason: str, *, converged: bool, known: bool) -> None:
        """The run is over before its last step; ``known``: events.jsonl says so already."""
        if not known:
            self._telemetry.event("complete", step=step, reason=reason)
        on = (
            "--set convergence.stop=false"
            if converged
            else "another run from its export (model.start_from), with higher caps or more text"
        )
        self._telemetry.say(f"complete after step {step}: {reason}; to go on: {on}")
