"""A run that was cut off and started again by the same command is the run that was not, bit by bit; one that would
go on differently is refused and nothing of it is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pretrain
from data.preparation import prepare
from data.recipe import parse_recipe, read_recipe
from model import tensor_file
from tests.small_run import write_small_recipe
from tests.training.runs import (
    WITHOUT_EVALUATION,
    call,
    digests,
    final_weights,
    numbers,
    sharding,
    train,
)
from training import trainer
from training.checkpoint import checkpoints_in
from training.config import Recipe
from training.metrics import read_events
from training.run_folder import LOCK_FILE

# Six steps, saved after every second; from the third on the model writes a part of the mixed text.
DRAWN = (
    "tasks.btmlm={decode: {top_k: 5}}",
    "tasks.mixed_alignment={generators: {dictionary: 1, pseudo_tokens: 2}, pseudo_tokens: {gate: {tokens: 8000}}}",
    "model.language_embeddings=true",
)
RUN = (WITHOUT_EVALUATION, "checkpoint.keep=3", "log.every=100", *DRAWN)
CASES = {
    "fp32": (3, "fp32"),
    "bf16": (3, "bf16"),
    "bf16, ZeRO-1": (1, "bf16"),
    "fp32, ZeRO-0": (0, "fp32"),
    "bf16, ZeRO-0": (0, "bf16"),
}


def after_step(step: int, act: Callable[[], None]) -> Callable[[], None]:
    """A probe that acts in every rank after ``step`` is written down, before it is saved."""

    def probe() -> None:
        original = trainer.Telemetry.step

        def stepped(self: Any, scalars: Any) -> None:
            original(self, scalars)
            if int(scalars["step"]) == step:
                act()

        trainer.Telemetry.step = stepped  # type: ignore[method-assign]

    return probe


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def first_rank() -> bool:
    return os.environ["RANK"] == "0"


class Whole:
    """The uninterrupted runs, each made once."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._done: dict[tuple[int, str], Path] = {}

    def __call__(self, stage: int, precision: str) -> Path:
        if (stage, precision) not in self._done:
            runs = self.folder / f"{stage}{precision}"
            train(self.recipe, runs, *RUN, f"precision={precision}", ranks=2, stage=stage)
            self._done[stage, precision] = runs / "small"
        return self._done[stage, precision]


@pytest.fixture(scope="module")
def whole(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(small_recipe, tmp_path_factory.mktemp("whole"))


def check_same(run: Path, truth: Path) -> None:
    assert numbers(run) == numbers(truth)
    mine, theirs = final_weights(run), final_weights(truth)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if "ZeRO" in case else []) for case in CASES]
)
def test_killed_between_steps_and_started_again_it_is_bitwise_the_same(
    small_recipe: Path, whole: Whole, tmp_path: Path, case: str
) -> None:
    stage, precision = CASES[case]
    settings = (*RUN, f"precision={precision}")
    with pytest.raises(AssertionError, match="exit codes|failed"):
        train(small_recipe, tmp_path, *settings, ranks=2, stage=stage, probe=after_step(5, die))
    run = tmp_path / "small"
    assert [p.name for p in checkpoints_in(run / "checkpoints")] == ["step-00000004", "step-00000002"]
    assert len(numbers(run)) == 5
    train(small_recipe, tmp_path, *settings, ranks=2, stage=stage)
    check_same(run, whole(stage, precision))
    (resume,) = [event for event in read_events(run) if event["event"] == "resume"]
    assert resume["step"] == 4 and resume["passed_over"] == []


@pytest.mark.ranks
def test_dropout_is_a_function_of_the_step_too(small_recipe: Path, tmp_path: Path) -> None:
    settings = (*RUN, "steps=4", "model.dropout=0.2", "batch.microbatch_tokens=4096")
    train(small_recipe, tmp_path / "whole", *settings)
    with pytest.raises(AssertionError, match="exit codes|failed"):
        train(small_recipe, tmp_path / "killed", *settings, probe=after_step(3, die))
    train(small_recipe, tmp_path / "killed", *settings)
    check_same(tmp_path / "killed" / "small", tmp_path / "whole" / "small")
    train(small_recipe, tmp_path / "without", *RUN, "steps=4", "batch.microbatch_tokens=4096")
    assert numbers(tmp_path / "without" / "small") != numbers(tmp_path / "whole" / "small")


@pytest.mark.ranks
def test_killed_while_it_saves_it_goes_on_from_the_checkpoint_before(
    small_recipe: Path, whole: Whole, tmp_path: Path
) -> None:
    def die_in_the_second_save() -> None:
        original = tensor_file._write

        def write(descriptor: int, block: memoryview) -> None:
            original(descriptor, block)
            if os.lseek(descriptor, 0, os.SEEK_CUR) > 300_000 and not first_rank():
                if "00000004" in os.readlink(f"/proc/self/fd/{descriptor}"):
                    die()

        tensor_file._write = write

    with pytest.raises(AssertionError, match="exit codes|failed"):
        train(small_recipe, tmp_path, *RUN, ranks=2, stage=3, probe=die_in_the_second_save)
    folder = tmp_path / "small" / "checkpoints"
    assert (folder / "writing-step-00000004").is_dir() and (
        folder / "latest"
    ).read_text() == "step-00000002\n"
    train(small_recipe, tmp_path, *RUN, ranks=2, stage=3)
    check_same(tmp_path / "small", whole(3, "fp32"))
    assert not list(folder.glob("writing-*"))


@pytest.mark.ranks
@pytest.mark.parametrize("way", ["SIGTERM to one rank", "SIGINT to all", "STOP"])
def test_asked_to_stop_it_saves_the_step_it_is_in_and_goes_on_from_there(
    small_recipe: Path, whole: Whole, tmp_path: Path, way: str
) -> None:
    run = tmp_path / "small"

    def ask() -> None:
        if way == "SIGINT to all":
            os.kill(os.getpid(), signal.SIGINT)
        elif way == "STOP" and first_rank():
            (run / "STOP").touch()
        elif way == "SIGTERM to one rank" and not first_rank():
            os.kill(os.getpid(), signal.SIGTERM)

    train(small_recipe, tmp_path, *RUN, "checkpoint.every=0", ranks=2, stage=3, probe=after_step(2, ask))
    assert [p.name for p in checkpoints_in(run / "checkpoints")] == ["step-00000003"]
    assert not (run / "STOP").exists()
    (stop,) = [event for event in read_events(run) if event["event"] == "stop"]
    assert stop["step"] == 3
    if way == "STOP":  # one is enough: what comes after is the same
        train(small_recipe, tmp_path, *RUN, "checkpoint.every=0", ranks=2, stage=3)
        check_same(run, whole(3, "fp32"))


@pytest.mark.ranks
def test_asked_to_save_it_saves_once_and_goes_on(small_recipe: Path, whole: Whole, tmp_path: Path) -> None:
    run = tmp_path / "small"

    def ask() -> None:
        if first_rank():
            (run / "SAVE").touch()

    train(small_recipe, tmp_path, *RUN, "checkpoint.every=0", ranks=2, stage=3, probe=after_step(2, ask))
    assert [p.name for p in checkpoints_in(run / "checkpoints")] == ["step-00000006", "step-00000003"]
    assert not (run / "SAVE").exists()
    assert [e["step"] for e in read_events(run) if e["event"] == "save"] == [3, 6]
    check_same(run, whole(3, "fp32"))


# ------------------------------------------------------------------------------------------------ refusals


@pytest.fixture(scope="module")
def own_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small recipe whose corpora may be changed, with a finished run of two steps beside it in ``runs``."""
    folder = tmp_path_factory.mktemp("own")
    recipe = write_small_recipe(folder)
    prepare(parse_recipe(read_recipe(recipe), Recipe), workers=1, say=lambda message: None)
    train(recipe, folder / "runs", "steps=2", WITHOUT_EVALUATION, stage=1)
    for stage in (1, 2):
        (folder / f"zero{stage}.json").write_text(json.dumps(sharding(stage)))
    return recipe


def refused(recipe: Path, *changes: str, ranks: int = 1, stage: int = 1) -> str:
    """The message of the same command with ``changes``; checks that nothing in the run folder is touched."""
    runs = recipe.parent / "runs"
    before = digests(runs)
    settings = [f"--set={each}" for each in ("steps=4", WITHOUT_EVALUATION, *changes)]
    command = ["--recipe", recipe, "--runs", runs, "--deepspeed_config", recipe.parent / f"zero{stage}.json"]
    first, *others = call(pretrain.main, *command, *settings, ranks=ranks)
    assert all(other.status == 2 and "error:" not in other.err for other in others)
    after = digests(runs)
    del before[f"small/{LOCK_FILE}"], after[f"small/{LOCK_FILE}"]
    assert after == before
    return first.error


REFUSED = {
    "seed": ("seed=4", "seed: was 3, is 4"),
    "step": ("batch.step_tokens=2048", "batch.step_tokens: was 4096, is 2048"),
    "row": ("batch.row_tokens=256", "batch.row_tokens: was 512, is 256"),
    "masks": ("tasks.mmlm.mask_rate=0.2", "tasks.mmlm.mask_rate: was 0.15, is 0.2"),
    "task left out": ("tasks.tlm=null", "tasks.tlm: was {"),
    "model": ("model.width=64", "model.width: was 32, is 64"),
    "precision": ("precision=bf16", "precision: was fp32, is bf16"),
}


@pytest.mark.ranks
@pytest.mark.parametrize("what", REFUSED)
def test_a_change_that_would_make_it_another_run_is_refused(own_recipe: Path, what: str) -> None:
    change, message = REFUSED[what]
    said = refused(own_recipe, change)
    assert message in said and "step-00000002 can not be continued" in said and "--set name=" in said
    assert len([line for line in said.splitlines() if ": was" in line]) == 1


@pytest.mark.ranks
def test_a_changed_corpus_and_another_tokenizer_are_refused_also_after_the_store_was_built_again(
    own_recipe: Path,
) -> None:
    said = refused(own_recipe, "tokenizer.train.vocabulary_size=1900")
    assert "tokenizer.train.vocabulary_size: was 2000, is 1900" in said and "--rebuild" in said
    corpus = own_recipe.parent / "sentences.jsonl"
    sound = corpus.read_bytes()
    corpus.write_bytes(sound[: sound.rindex(b"\n", 0, -1) + 1])  # without its last sentence
    try:
        assert f"{corpus}: has changed" in refused(own_recipe)
        prepare(
            parse_recipe(read_recipe(own_recipe), Recipe), workers=1, rebuild=True, say=lambda message: None
        )
        assert "is not the store that the run was trained on" in refused(own_recipe)
    finally:
        corpus.write_bytes(sound)
        prepare(
            parse_recipe(read_recipe(own_recipe), Recipe), workers=1, rebuild=True, say=lambda message: None
        )


@pytest.mark.ranks
def test_what_does_not_change_the_order_of_the_data_may_change_and_is_used(
    own_recipe: Path, tmp_path: Path
) -> None:
    shutil.copytree(own_recipe.parent / "runs", tmp_path / "runs")
    seen = tmp_path / "seen"

    def probe() -> None:
        original = trainer.Trainer.fit

        def fit(self: trainer.Trainer) -> None:
            optimizer = self.engine._engine.optimizer
            decays = sorted(group["weight_decay"] for group in optimizer.param_groups)
            seen.write_text(json.dumps([decays, optimizer.clip_grad]))
            original(self)

        trainer.Trainer.fit = fit  # type: ignore[method-assign]

    changes = (
        "steps=3",
        "optimizer.weight_decay=0.5",
        "optimizer.gradient_clipping=0.25",
        "batch.microbatch_tokens=2048",
    )
    train(own_recipe, tmp_path / "runs", WITHOUT_EVALUATION, *changes, stage=1, probe=probe)
    assert json.loads(seen.read_text()) == [[0.0, 0.5, 0.5], 0.25]
    assert [step["tokens"] > 0 for step in numbers(tmp_path / "runs" / "small")] == [True] * 3


@pytest.mark.ranks
def test_checkpoints_that_are_all_damaged_or_gone_end_the_run_with_a_message(
    own_recipe: Path, tmp_path: Path
) -> None:
    runs = own_recipe.parent / "runs"
    kept = shutil.copytree(runs, tmp_path / "kept")
    try:
        state = runs / "small" / "checkpoints" / "step-00000002" / "run.json"
        state.write_text(state.read_text().replace("1", "2"))
        said = refused(own_recipe)
        assert "none can be used" in said and str(state) in said
        shutil.rmtree(state.parent)
        assert "checkpoints were expected" in refused(own_recipe)
    finally:
        shutil.rmtree(runs)
        shutil.copytree(kept, runs)


@pytest.mark.ranks
def test_a_run_folder_in_which_another_process_trains_is_refused(own_recipe: Path) -> None:
    from training.run_folder import claim

    with claim(own_recipe.parent / "runs" / "small"):
        assert f"another process is training there (process {os.getpid()} on" in refused(own_recipe)
    assert "seed: was" in refused(own_recipe, "seed=9")  # it was given back
