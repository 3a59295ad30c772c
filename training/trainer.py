"""Trainer: one run from its recipe to its export-ready checkpoint. The loop is ``fit``.

data ──▶ planner ──▶ microbatches ──▶ step ──▶ telemetry      now and then: evaluation, checkpoint
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.batch import PackedBatch
from data.keys import key
from data.microbatch import Microbatch, MicrobatchMaker
from data.preparation import prepare
from data.recipe import RawRecipe, UserError
from data.stream import BatchStream
from data.tally import Tally
from kernels.implementation import ImplementationUnavailable
from model.generation import Decoding
from model.parallel.split import whole_shape
from model.pretraining import PretrainingOutput
from objectives.adaptive_margin import InBatch
from objectives.alignment import Comparison
from training import checkpoint, run_folder
from training.build import build_model, maker_from, maker_of, open_data, planner_of, pseudo_tokens_of
from training.checkpoint import Found
from training.config import Recipe
from training.decisions import Decisions
from training.engine import Engine, World, join_world, sharder
from training.evaluation import Evaluator
from training.first_step import check_numbers, check_texts, dry_batch
from training.margins import Margins
from training.metrics import Telemetry, read_evaluations, read_events
from training.narration import Narration
from training.optimizer import build_optimizer, layer_norm_class
from training.progress import Progress
from training.pseudo_evaluation import Frozen
from training.requests import SAVE, STOP, Requests
from training.resumption import restore, state_of_run, state_to_go_on_from
from training.schedule import learning_rate
from training.sharding import data_ranks, resolve_sharding
from training.shared_batches import SharedBatches
from training.start_up import StartUp
from training.step import (
    StepLosses,
    StepMargins,
    in_batch_weights,
    run_microbatches,
    sum_tallies,
    weights_of,
)
from training.writing import StepText, write_pseudo_tokens

_SKIPS_IN_A_ROW = 20  # steps without a finite gradient after which a run is given up


class Trainer:
    """Everything of a run that lives as long as it does."""

    def __init__(
        self, recipe: Recipe, raw: RawRecipe, sharding: dict[str, Any], sharding_path: Path, runs: Path
    ) -> None:
        """Build the run; what is wrong with it is said here, before the first step."""
        self.start_up = StartUp()
        self.start_up.ends("imports")
        self.recipe = recipe
        data_ranks(recipe, int(os.environ["WORLD_SIZE"]))
        self.world: World = join_world(recipe.parallel.tensor)
        self.folder = runs / recipe.name
        self.checkpoints = self.folder / "checkpoints"
        self._claim: object = None
        self._by_first(self._prepare_store)
        self.data = open_data(recipe)
        resolved = resolve_sharding(sharding, sharding_path, recipe, raw.path, self.world.ranks)
        found = self._checkpoint_to_resume()
        norm = layer_norm_class(recipe.optimizer, self.world.device)
        model, fresh = build_model(recipe, self.data, norm, self.world.tensor, sharder(resolved, self.world))
        self.encoder = model.config
        parameters = sum(math.prod(whole_shape(parameter)) for parameter in model.parameters())
        optimizer = build_optimizer(model.named_parameters(), recipe.optimizer, self.world.device)
        self.engine = Engine(model, optimizer, resolved, self.world)
        self.planner = planner_of(recipe, self.data)
        self.progress = Progress(self.data.streams, recipe, self.data.store.languages)
        self.margins = Margins(recipe.tasks)
        self.done = 0
        self._saved = 0  # the step of the newest checkpoint
        if found is not None:
            self._resume(*found)
        self.batches = SharedBatches(self._open_batches, self.planner, self.world.tensor, self.world.device)
        self.pseudo = pseudo_tokens_of(recipe, self.data, self.world.device)
        self.evaluator = Evaluator(
            self.data.store, self.data.material, recipe.evaluation, recipe.batch.microbatch_tokens,
            recipe.tasks.btmlm, self.pseudo, self.world.tensor.size,
        )  # fmt: skip
        if self.evaluator.pseudo is not None:
            self.evaluator.pseudo.frozen = self._by_first(self._frozen_pseudo_tokens)
        self.telemetry = Telemetry(
            self.folder,
            step=self.done,
            total_steps=recipe.steps,
            log_every=recipe.log.every,
            writes=self.world.first,
            tensorboard=recipe.log.tensorboard,
        )
        self.decisions = Decisions(recipe, self.data.streams, self.planner, self.telemetry)
        if found is not None:
            self.decisions.restore(found[1]["decisions"])
        if self.world.first:
            fingerprints = {
                "store": self.data.store.fingerprint,
                "tokenizer": self.data.material.tokenizer.fingerprint,
                **{f"teacher of {task}": found for task, found in self.data.taught.fingerprints.items()},
            }
            run_folder.describe(self.folder, recipe, raw, resolved, fingerprints)
        self.narration = Narration(self.telemetry, recipe, self.folder)
        self.narration.introduce(
            parameters, len(self.data.streams), self.engine, self.world, None if found is not None else fresh
        )
        if found is not None:
            self.narration.resumed(found[0].path, self.done, found[0].faults)
        self.requests = Requests(self.folder, first=self.world.first)
        self.start_up.ends("build")

    def fit(self) -> None:
        """Train to the recipe's last step, or until somebody asks to stop; the newest state is always saved."""
        self.requests.listen()
        if self._evaluates_before():
            self._dry_batch()
            self.start_up.ends("dry batch")
            self._evaluate()
        elif self.done >= self.recipe.steps or (self.done > 0 and self.decisions.waits_for(self.done)):
            self._make_up_evaluation()
        self.start_up.ends("evaluation")
        first, skipped = self.done + 1, 0
        complete: str | None = None
        for step in range(first, self.recipe.steps + 1):
            complete = self._converged()
            if complete:
                break
            started = time.perf_counter()
            microbatches = self.batches.next()
            self.start_up.ends("first batch")
            if self.planner.exhausted(step):
                complete = "every corpus is read as often as sampling.maximum_epochs allows"
                break
            waited = time.perf_counter() - started
            tally, (stop, save) = sum_tallies(microbatches, self.requests.seen(), self.world.tensor)
            if step == 1:
                check_texts(self.planner, tally, self.recipe.batch)
            # Dropout, another one on each data rank: a function of the step, so nothing of it has to be saved.
            torch.manual_seed(key(self.recipe.seed, step, self.world.rank, "dropout"))
            text = self._text(microbatches, tally)
            losses = self._losses(text)
            rate = learning_rate(step, self.recipe.steps, self.recipe.optimizer)
            outcome = self.engine.step(rate)
            if step == 1:
                check_numbers(losses, outcome.gradient_norm)
            mix = self.planner.mix(step)
            self.planner.feedback(step, tally[:, Tally.TOKENS])
            self.done = step
            if self.progress.stage not in (None, mix.stage):
                ended = (self.progress.stage or 0) + 1
                self.narration.stage_ended(step - 1, ended, self.progress.of_stage())
            self.progress.begin_stage(mix.stage)
            self.telemetry.step(
                self.progress.scalars(
                    step, text.tally, losses, outcome, rate, mix, health=text.health,
                    seconds=time.perf_counter() - started, waited=waited, memory_gib=self._memory_gib(),
                )
                | self.margins.scalars(losses.gaps)
            )  # fmt: skip
            if step == first:
                self.start_up.ends("first step")
                self.narration.started(step, self.start_up)
            self.margins.update(losses.gaps)  # from the next step on
            skipped = skipped + 1 if outcome.skipped else 0
            if outcome.skipped:
                self.telemetry.event("skip", step=step, reason="the gradient is not finite")
                if skipped >= _SKIPS_IN_A_ROW:
                    raise UserError(
                        f"step {step}: no finite gradient in {skipped} steps. Lower optimizer.learning_rate or raise"
                        " optimizer.warmup_steps, and start again from an earlier checkpoint."
                    )
            last = step == self.recipe.steps
            # Saved first: an evaluation that fails or is killed costs no step.
            every = self.recipe.checkpoint.every
            if last or stop or save or (every and step % every == 0):
                self._save(step, last=last or stop)
            every = self.recipe.evaluation.every
            if last or (every and step % every == 0):
                self._evaluate()
            if stop:
                self.requests.answered(STOP)
                self.narration.stopped(step, self.requests.why_to_stop)
                break
        complete = complete or self._converged()
        if complete:
            self._complete(complete)
        self.batches.close()
        self.telemetry.close()

    def _margins_of(self, tally: np.ndarray) -> StepMargins:
        """The margin losses of a step whose tally over all ranks is ``tally`` (S, columns)."""
        form = self.margins.form("in_batch_margin")
        if form is None:
            return StepMargins(self.margins.form("adaptive_margin"))
        weights = in_batch_weights(tally, self.recipe.tasks, self.world.device)
        return StepMargins(self.margins.form("adaptive_margin"), InBatch(form, weights))

    def _by_first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns on the first rank, on every rank; a UserError there is raised on all."""
        outcome: list[Any] = [None]
        if self.world.first:
            try:
                outcome[0] = work()
            except UserError as fault:
                outcome[0] = fault
        dist.broadcast_object_list(outcome, src=0, device=self.world.device)
        if isinstance(outcome[0], UserError):
            raise outcome[0]
        return outcome[0]

    def _open_batches(self) -> BatchStream:
        return BatchStream(
            self.planner,
            maker_of(self.recipe) if self.recipe.workers else self._maker,
            microbatch_tokens=self.recipe.batch.microbatch_tokens,
            rank=self.world.rank,
            ranks=self.world.ranks,
            workers=self.recipe.workers,
            teacher_width=self.data.taught.width,
        )

    def _maker(self) -> MicrobatchMaker:
        return maker_from(self.recipe, self.data)

    def _prepare_store(self) -> None:
        prepare(self.recipe)

    def _claim_folder(self) -> None:
        self._claim = run_folder.claim(self.folder)

    def _checkpoint_to_resume(self) -> tuple[Found, dict[str, Any]] | None:
        """The newest sound checkpoint, the same on every rank; refused where this run would go on differently."""
        self._by_first(self._claim_folder)
        found = checkpoint.newest(self.checkpoints, self.world)
        if found is None:
            return None
        return found, state_to_go_on_from(found, self.recipe, self.data)

    def _resume(self, found: Found, state: dict[str, Any]) -> None:
        self.engine.load(found.shards(), found.manifest["engine"])
        self.done = self._saved = restore(found, state, self.planner, self.progress, self.margins)

    def _save(self, step: int, *, last: bool) -> None:
        """Save; a fault of the disk is told and the run goes on, unless this is the last save of this start."""
        state = state_of_run(
            step, self.recipe, self.data, self.encoder, self.planner, self.progress, self.margins, self.decisions
        )  # fmt: skip
        started = time.perf_counter()
        keep = self.recipe.checkpoint
        saved = checkpoint.save(self.engine, self.checkpoints, step, state, keep.keep, keep.keep_every)
        self.requests.answered(SAVE)
        if not saved.faults:
            self._saved = step
            seconds = round(time.perf_counter() - started, 2)
            self.telemetry.event("save", step=step, path=saved.path, seconds=seconds)
            return
        self.narration.not_saved(step, saved.faults)
        if last:
            before = f"step {self._saved}, {self.checkpoints}" if self._saved else "none"
            raise UserError(
                f"step {step} could not be saved: {'; '.join(saved.faults)}. Make room, or mend the disk, and start the"
                f" same command again: it goes on from the last good checkpoint ({before})."
            )

    def _text(self, microbatches: list[Microbatch], tally: np.ndarray) -> StepText:
        """This rank's part of a step with what the model itself writes, and what the step holds of all ranks."""
        if self.pseudo is not None and tally[:, Tally.PSEUDO].any():
            return write_pseudo_tokens(self.engine, microbatches, self.pseudo, tally)
        batches = [PackedBatch.from_arrays(each.arrays).to(self.world.device) for each in microbatches]
        return StepText(batches, tally)

    def _losses(self, text: StepText) -> StepLosses:
        """Forward and backward of this rank's part of a step; the gradient is left with the engine."""
        weights = weights_of(text.tally, self.data.streams, self.recipe.tasks, self.world.device)
        self.engine.train()
        try:
            return run_microbatches(
                self.engine, text.batches, weights,
                aligned=self.recipe.tasks.aligns,
                comparison=Comparison(self.recipe.alignment.additive_margin, self.recipe.alignment.matryoshka),
                margins=self._margins_of(text.tally),
                kernels=self.recipe.kernels,
            )  # fmt: skip
        except ImplementationUnavailable as error:
            raise UserError(f"kernels: {error}") from None

    def _evaluates_before(self) -> bool:
        return self.done == 0 and self.recipe.evaluation.before and self.recipe.evaluation.measures

    def _dry_batch(self) -> None:
        """The first step ahead of the evaluation, which may take long, so that what is wrong is said before it."""
        planner, maker = planner_of(self.recipe, self.data), self._maker()
        dry_batch(planner, maker, self.recipe.batch, self.engine, self.world, self._dry_losses)

    def _dry_losses(self, microbatches: list[Microbatch], tally: np.ndarray) -> StepLosses:
        return self._losses(self._text(microbatches, tally))

    def _evaluate(self) -> None:
        if not self.recipe.evaluation.measures:
            return
        started = time.perf_counter()
        self.telemetry.say(f"evaluating after {self.done} steps ...")
        self.engine.train(False)
        trained = self.recipe.tasks.btmlm is not None and self.progress.spent("btmlm") > 0
        kept = self.evaluator.pseudo and self.evaluator.pseudo.frozen
        scores = self.evaluator(self._forward, self._generate, self.done if trained else None)
        self.engine.train()
        held_out = self.evaluator.pseudo
        if held_out is not None and held_out.frozen is not None and kept is None:
            if self.world.first:
                held_out.frozen.write(self.folder, held_out.fingerprint)
            self.telemetry.event("pseudo_tokens", step=self.done, frozen=len(held_out.frozen.ids))
        self.narration.evaluated(self.done, scores, time.perf_counter() - started)
        if self.done:
            self.telemetry.event("shares", step=self.done, shares=self.progress.of_languages())
        self.decisions.take(self.done, self.progress.tokens, scores)

    def _make_up_evaluation(self) -> None:
        """The evaluation after the checkpoint's step: what it found, if it is written down, else itself.

        A step is saved before it is evaluated, so a checkpoint does not know what its evaluation decided.
        """
        scores = self._by_first(lambda: read_evaluations(self.folder)).get(self.done)
        if scores is None:
            self._evaluate()
        else:
            self.decisions.take(self.done, self.progress.tokens, scores)

    def _converged(self) -> str | None:
        since = self.decisions.complete_since
        return None if since is None else f"both tasks had converged on held-out text after step {since}"

    def _forward(self, batch: PackedBatch, sentence_vectors_only: bool) -> PretrainingOutput:
        return self.engine(batch.to(self.world.device), sentence_vectors_only=sentence_vectors_only)

    def _generate(self, generation: PackedBatch, decoding: Decoding) -> Tensor:
        return self.engine.generate(generation.to(self.world.device), decoding)

    def _frozen_pseudo_tokens(self) -> Frozen | None:
        assert self.evaluator.pseudo is not None
        return Frozen.read(self.folder, self.evaluator.pseudo.fingerprint, self.done)

    def _complete(self, reason: str) -> None:
        """The run is over before its last step: saved, measured, and said again by every later start."""
        if self.done == 0:
            raise UserError("the corpora hold less than half a step: make batch.step_tokens smaller.")
        if self._saved != self.done:
            self._save(self.done, last=True)
        if self.done not in self._by_first(lambda: read_evaluations(self.folder)):
            self._evaluate()
        events = self._by_first(lambda: read_events(self.folder))
        self.narration.completed(
            self.done,
            reason,
            converged=self.decisions.complete_since is not None,
            known=any(event["event"] == "complete" for event in events),
        )

    def _memory_gib(self) -> float:
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
