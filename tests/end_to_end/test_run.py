"""The whole way with the real commands: launch, kill, launch again, export, reopen, evaluate, show."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from data.task import Material
from data.tokenizer import Tokenizer
from tests.training.runs import WITHOUT_EVALUATION, call, digests, numbers, sharding, train
from training.checkpoint import checkpoints_in, verify
from training.evaluate import main as evaluate_main
from training.evaluation import sentence_batch
from training.metrics import METRICS_FILE, read_evaluations, read_events
from training.run_folder import claim
from training.saved_run import load_run

pytestmark = pytest.mark.ranks

STEPS = 6


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


BIN = Path(sys.executable).parent


class Launched:
    """A launcher with two ranks of pretrain.py, in a session of its own, which is ended whole."""

    def __init__(self, *arguments: object, launcher: Sequence[object] | None = None) -> None:
        launcher = launcher or [BIN / "deepspeed", "--num_accelerators", "2", "--master_port", free_port()]
        command = [*launcher, "pretrain.py", *arguments]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def kill(self) -> None:
        """SIGKILL to the launcher, the ranks and their workers at once."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(timeout=30)

    def finish(self, timeout: float = 240) -> str:
        """What it printed, once it ended well."""
        out, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, out
        return out


def command(*arguments: object, timeout: float = 120) -> str:
    """The output of ``python`` with these arguments, offline, in a process group of its own."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Whole(NamedTuple):
    """What the commands left."""

    run: Path
    export: Path
    recipe: Path
    said: str


@pytest.fixture(scope="module")
def whole(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """Launched, killed in the middle with SIGKILL, launched again by the same command, exported."""
    folder = tmp_path_factory.mktemp("end_to_end")
    config = folder / "zero3.json"
    config.write_text(json.dumps(sharding(3)))
    arguments = [
        "--recipe",
        small_recipe,
        "--runs",
        folder,
        "--deepspeed_config",
        config,
        "--set",
        "workers=1",
    ]
    run = folder / "small"
    first = Launched(*arguments)
    try:
        wait_for(lambda: len(lines(run / METRICS_FILE)) >= 3, first)
    finally:
        first.kill()
    again = Launched(*arguments)
    try:
        said = again.finish()
    finally:
        again.kill()
    export = folder / "export"
    command("-m", "training.export", run, export)
    yield Whole(run, export, small_recipe, said)


def wait_for(happened: Callable[[], bool], launched: Launched, timeout: float = 180) -> None:
    """Wait while the launched run lives."""
    deadline = time.monotonic() + timeout
    while not happened():
        assert launched.process.poll() is None, launched.process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def test_killed_in_the_middle_the_same_command_ends_the_run_as_if_nothing_had_been(
    whole: Whole, tmp_path: Path
) -> None:
    assert "resuming from" in whole.said and "Traceback" not in whole.said
    assert [event["event"] for event in read_events(whole.run)].count("resume") == 1
    train(whole.recipe, tmp_path, WITHOUT_EVALUATION, ranks=2, stage=3)  # forked, not killed, without workers
    assert numbers(whole.run) == numbers(tmp_path / "small")
    assert len((whole.run / "command.txt").read_text().splitlines()) == 2
    for name in (
        "recipe.resolved.yaml",
        "ds_config.resolved.json",
        "environment.json",
        "git.json",
        "data.json",
    ):
        assert (whole.run / name).stat().st_size > 2, name


OPEN = """
import json, sys
import numpy as np, torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
folder, texts, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
tokenizer = AutoTokenizer.from_pretrained(folder)
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    hidden = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()(**batch).last_hidden_state
    logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(**batch).logits
mask = batch["attention_mask"][..., None]
means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
model = SentenceTransformer(folder)
np.savez(out, means=means, logits=logits[0], vectors=model.encode(texts), longest=model.max_seq_length)
"""


def test_the_export_opens_offline_and_gives_the_vectors_of_the_training_model(
    whole: Whole, tmp_path: Path
) -> None:
    parity = json.loads((whole.export / "parity.json").read_text())
    assert parity["step"] == STEPS and parity["largest_difference"]["token_ids"] == 0
    assert all(value <= parity["tolerance"] for value in parity["largest_difference"].values())
    run = load_run(whole.run)
    corpus = run.store.corpora["test"]
    segments = list(range(0, corpus.segments, 7))
    texts = [corpus.text(segment) for segment in segments]
    command("-c", OPEN, whole.export, json.dumps(texts), tmp_path / "theirs.npz")
    theirs = np.load(tmp_path / "theirs.npz")
    material = Material(
        Tokenizer.open(run.store.tokenizer_folder), None, run.store.languages, run.recipe.maximum_tokens
    )
    batch = sentence_batch([corpus.ids(segment) for segment in segments], material)
    with torch.no_grad():
        ours = run.model(batch, sentence_vectors_only=True).sentence_vectors.numpy()
    for name in ("vectors", "means"):
        np.testing.assert_allclose(theirs[name], ours, atol=2e-6)
    assert theirs["longest"] == run.recipe.maximum_tokens == 64
    assert theirs["logits"].shape[1] == run.model.config.vocabulary_size
    assert np.ptp(theirs["vectors"], axis=0).max() > 0.01  # texts differ


def test_evaluating_run_checkpoint_and_export_gives_the_figures_of_the_runs_last_evaluation(
    whole: Whole, tmp_path: Path
) -> None:
    evaluations = read_evaluations(whole.run)
    assert set(evaluations) == {0, STEPS}
    of_the_run = evaluations[STEPS]
    command("-m", "training.evaluate", whole.run, "--out", tmp_path / "run.json")
    checkpoint = whole.run / "checkpoints" / f"step-{STEPS:08d}"
    for name, source in (("checkpoint", checkpoint), ("export", whole.export)):
        (done,) = call(evaluate_main, source, "--recipe", whole.recipe, "--out", tmp_path / f"{name}.json")
        assert done.status == 0 and "retrieval/test/mean" in done.out, done
    for name in ("run", "checkpoint", "export"):
        figures = json.loads((tmp_path / f"{name}.json").read_text())["model"]
        assert figures.keys() == of_the_run.keys()
        for figure, value in of_the_run.items():
            assert figures[figure] == pytest.approx(value, abs=1e-9 if "retrieval" in figure else 1e-5), (
                figure
            )


def test_the_gains_and_the_report_are_shown(whole: Whole) -> None:
    before = digests(whole.export)
    said = command("-m", "training.gains", whole.run, whole.export, "--floors", "1")
    for words in ("retrieval/test/mean", "before", "after", "3-grams", "token means", "nearest neighbours"):
        assert words in said
    assert str(whole.export) in said
    assert digests(whole.export) == before
    page = Path(command("-m", "training.report", whole.run).strip())
    assert page == whole.run / "report.html" and "<svg" not in page.read_text()[:100]
    assert "resumed" in page.read_text()


def test_an_export_is_replaced_by_the_next_and_the_run_stays_as_it_is(whole: Whole) -> None:
    before = digests(whole.run)
    files = set(digests(whole.export))
    said = command("-m", "training.export", whole.run / "checkpoints" / "step-00000004", whole.export)
    assert "exported step 4" in said
    assert set(digests(whole.export)) == files
    assert json.loads((whole.export / "parity.json").read_text())["step"] == 4
    assert digests(whole.run) == before
    assert not list(whole.export.parent.glob("*.writing*"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["torchrun", "python"])
def test_other_launchers_train_the_same(small_recipe: Path, tmp_path: Path, way: str) -> None:
    ranks = 2 if way == "torchrun" else 1
    launcher: list[object] = [sys.executable]
    if way == "torchrun":
        launcher = [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", free_port()]
    (tmp_path / "ds.json").write_text(json.dumps(sharding(3)))
    launched = Launched(
        "--recipe", small_recipe, "--runs", tmp_path / "launched", "--deepspeed_config", tmp_path / "ds.json",
        "--set", WITHOUT_EVALUATION, launcher=launcher,
    )  # fmt: skip
    try:
        launched.finish()
    finally:
        launched.kill()
    train(small_recipe, tmp_path / "forked", WITHOUT_EVALUATION, ranks=ranks, stage=3)
    assert numbers(tmp_path / "launched" / "small") == numbers(tmp_path / "forked" / "small")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["the group", "launch.py"])
def test_sigterm_to_the_launcher_saves_and_stops(small_recipe: Path, tmp_path: Path, to: str) -> None:
    launched = Launched(
        "--recipe", small_recipe, "--runs", tmp_path, "--set", WITHOUT_EVALUATION, "--set", "steps=2000",
        "--set", "checkpoint.every=0", "--set", "workers=1", "--set", "log.every=1000",
    )  # fmt: skip
    run = tmp_path / "small"
    try:
        wait_for(lambda: len(lines(run / METRICS_FILE)) >= 5, launched)
        if to == "the group":
            os.killpg(launched.process.pid, signal.SIGTERM)
        else:
            found = Path(f"/proc/{launched.process.pid}/task/{launched.process.pid}/children").read_text()
            os.kill(int(found.split()[0]), signal.SIGTERM)
        launched.process.communicate(timeout=60)
    finally:
        launched.kill()
    (stop,) = [event for event in read_events(run) if event["event"] == "stop"]
    (saved,) = checkpoints_in(run / "checkpoints")
    assert verify(saved)["step"] == stop["step"] == len(lines(run / METRICS_FILE))
    with claim(run):
        pass  # nobody holds it any more
