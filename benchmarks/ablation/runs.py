"""Running what is not done yet: several processes at a time, what was begun goes on, one failure stops nothing else."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ablation.clock import record_command, record_run
from benchmarks.ablation.plan import PresetConfig, Run
from benchmarks.turns.machine import cores
from data.recipe import UserError
from training.console import CLEAR_LINE, duration
from training.metrics import METRICS_FILE, read_evaluations

_POLL_SECONDS = 0.5
_SECONDS_BETWEEN_LINES = 60.0
_TAIL = 1 << 16  # bytes; holds at least one step of metrics.jsonl
_STOP_SECONDS = 60.0  # for a run that is asked to stop: it finishes its step and saves


@dataclass(frozen=True)
class Launch:
    """How runs are started and where they leave their folders."""

    folder: Path
    preset: PresetConfig
    plan_recipe: str
    at_once: int

    def command(self, run: Run) -> list[str]:
        """The command line of a run; anyone can type it."""
        launcher = [sys.executable]
        if self.preset.launcher == "deepspeed":
            # Beside the interpreter: an environment need not be activated.
            found = shutil.which(
                "deepspeed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
            )
            if found is None:
                raise UserError("the deepspeed command is not there; install requirements.lock")
            launcher = [found]
        settings = [word for override in run.overrides for word in ("--set", override)]
        return [
            *launcher, "pretrain.py", "--recipe", self.plan_recipe, "--runs", str(self.folder),
            "--deepspeed_config", self.preset.deepspeed_config, *settings,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Of a run: the cores are shared by those that run at the same time."""
        environment = dict(os.environ)
        if self.preset.launcher == "python":
            environment["OMP_NUM_THREADS"] = str(max(1, cores() // self.at_once))
        return environment


def results_of(folder: Path, run: Run) -> dict[int, dict[str, float]] | None:
    """The evaluations of a finished run by step; None if it is not finished."""
    evaluations = read_evaluations(folder / run.name)
    return evaluations if run.recipe.steps in evaluations else None


def run_all(runs: Sequence[Run], launch: Launch) -> dict[str, str]:
    """Run those of ``runs`` that are not finished; returns why runs failed, by name.

    SIGINT and SIGTERM are passed on: the runs save, and the same command goes on with them. KeyboardInterrupt
    is raised then.
    """
    launch.folder.mkdir(parents=True, exist_ok=True)
    board = _Board(runs, launch.folder)
    waiting = [run for run in runs if results_of(launch.folder, run) is None]
    todo, started = [run.name for run in waiting], time.monotonic()
    failures: dict[str, str] = {}
    running: dict[str, _Process] = {}
    with _interrupted_by(signal.SIGTERM):
        try:
            while waiting or running:
                while waiting and len(running) < launch.at_once:
                    run = waiting.pop(0)
                    running[run.name] = _Process(run, launch)
                time.sleep(_POLL_SECONDS)
                for name in [name for name, process in running.items() if process.ended()]:
                    process = running.pop(name)
                    fault = process.fault()
                    if fault:
                        failures[name] = fault
                    record_run(launch.folder, name, process.seconds())
                    board.ended(process.run, fault, process.seconds())
                board.show(running.values())
        finally:
            _stop(running.values())
            for process in running.values():
                record_run(launch.folder, process.run.name, process.seconds())
            if todo:
                record_command(launch.folder, todo, time.monotonic() - started, launch.at_once, cores())
            board.close()
    return failures


class _Process:
    """A run that was started."""

    def __init__(self, run: Run, launch: Launch) -> None:
        self.run = run
        self.log = launch.folder / f"{run.name}.log"
        self._folder = launch.folder
        self._started = time.monotonic()
        with self.log.open("ab") as log:
            self._begins = log.tell()
            self._process = subprocess.Popen(
                launch.command(run),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=launch.environment(),
                start_new_session=True,  # a signal reaches the launcher and all its ranks
                preexec_fn=_end_with_parent,
            )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def fault(self) -> str:
        """Why an ended run is not finished, or ""."""
        if results_of(self._folder, self.run) is not None:
            return ""
        status = self._process.returncode
        why = "stopped before its last step"
        if status:
            why = f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
            why = "; ".join(part for part in (why, self._last_words()) if part)
        return f"{why} (log: {self.log})"

    def _last_words(self) -> str:
        """The error that the run said, or its last line."""
        with self.log.open("rb") as log:
            log.seek(self._begins)
            lines = [
                line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()
            ]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines[-1:] or [""])[0]

    def ask_to_stop(self, number: signal.Signals) -> None:
        if not self.ended():
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _stop(processes: Iterable[_Process]) -> None:
    """Let all save and end; those that do not in time are ended."""
    processes = list(processes)
    for process in processes:
        process.ask_to_stop(signal.SIGTERM)
    until = time.monotonic() + _STOP_SECONDS
    for process in processes:
        if not process.wait(max(0.0, until - time.monotonic())):
            process.ask_to_stop(signal.SIGKILL)
            process.wait(10.0)


class _Board:
    """What is said while runs go on: a line for each that ends, and where all of them stand."""

    def __init__(self, runs: Sequence[Run], folder: Path) -> None:
        self._folder = folder
        self._total = len(runs)
        self._steps = {run.name: run.recipe.steps for run in runs}
        self._at_start = {run.name: self._share(run) for run in runs}
        self._now = dict(self._at_start)
        self._ended = sum(share == 1.0 for share in self._now.values())
        self._started = self._said = time.monotonic()
        self._live = sys.stdout.isatty()

    def ended(self, run: Run, fault: str, seconds: float) -> None:
        self._ended += 1
        self._now[run.name] = 1.0
        what = f"failed: {fault}" if fault else f"done in {duration(seconds)}"
        self._print(
            f"[{self._ended}/{self._total}] {run.variant}, seed {run.seed}: {what} | {self._left()} left"
        )

    def show(self, processes: Iterable[_Process]) -> None:
        now = time.monotonic()
        if not self._live and now - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = now
        parts = []
        for process in processes:
            run = process.run
            self._now[run.name] = self._share(run)
            parts.append(f"{run.variant}/{run.seed} {self._now[run.name]:.0%}")
        line = f"{self._ended}/{self._total} runs | {', '.join(parts)} | {self._left()} left"
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write(CLEAR_LINE + line[:width])
            sys.stdout.flush()
        else:
            print(line, flush=True)

    def close(self) -> None:
        if self._live:
            sys.stdout.write(CLEAR_LINE)
            sys.stdout.flush()

    def _print(self, line: str) -> None:
        print((CLEAR_LINE if self._live else "") + line, flush=True)

    def _left(self) -> str:
        """The time that is left, by what was done since this command began."""
        done = sum(self._now[name] - self._at_start[name] for name in self._now)
        left = sum(1.0 - share for share in self._now.values())
        return duration((time.monotonic() - self._started) * left / done) if done > 0.005 else "-"

    def _share(self, run: Run) -> float:
        if results_of(self._folder, run) is not None:
            return 1.0
        # The last evaluation and the start take time too; a tenth is what they were in short runs.
        return 0.9 * last_step(self._folder / run.name) / self._steps[run.name]


def last_step(run_folder: Path) -> int:
    """The newest step in a run's metrics, without reading all of them; 0 before the first."""
    path = run_folder / METRICS_FILE
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1]  # behind the last line break stands one that is being written
    try:
        step: Mapping[str, int] = json.loads(lines[-1])
        return int(step["step"])
    except (IndexError, ValueError):
        return 0


class _interrupted_by:  # noqa: N801 (read as a phrase)
    """While it holds, a signal raises KeyboardInterrupt, as SIGINT does."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __enter__(self) -> None:
        def raise_it(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        self._before: Callable[..., object] | int | None = signal.signal(self._number, raise_it)

    def __exit__(self, *raised: object) -> None:
        signal.signal(self._number, self._before)


def _end_with_parent() -> None:
    """In the child: be asked to stop when the runner is killed, so that its next start finds the folder free."""
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass  # not Linux
