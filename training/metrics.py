"""Telemetry of a run: metrics.jsonl, events.jsonl, TensorBoard, console. The only door of tensorboard.

    scalars of a step ─▶ metrics.jsonl   the source of truth: one JSON object per step, each step once
                      ─▶ tensorboard/    the same numbers, for looking at
                      ─▶ console         one line every ``log_every`` steps
    evaluations, saves, resumes, skips, signals ─▶ events.jsonl, with the time in UTC

Rank 0 alone has a ``Telemetry`` that writes; the other ranks hold one that does nothing, so the loop that
calls it needs no condition.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from training.console import Console

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Telemetry:
    """Writes what happens in a run, under ``run_folder``.

    ``step`` is the step that the run continues from (0 for a new run). Lines of later steps, which an
    interrupted run left behind and which are about to be computed again, are dropped from metrics.jsonl;
    TensorBoard is told to hide them; events stay, they are history.
    """

    def __init__(
        self,
        run_folder: Path | str,
        *,
        step: int = 0,
        total_steps: int = 0,
        log_every: int = 1,
        writes: bool = True,
        tensorboard: bool = True,
        out: TextIO | None = None,
    ) -> None:
        self._writes = writes
        if not writes:
            return
        self._folder = Path(run_folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._console = Console(total_steps, log_every, out)
        self._log_every = max(1, log_every)
        _keep_lines(self._folder / METRICS_FILE, last_step=step)
        _keep_lines(self._folder / EVENTS_FILE, last_step=None)
        self._metrics = (self._folder / METRICS_FILE).open("a", encoding="utf-8")
        self._events = (self._folder / EVENTS_FILE).open("a", encoding="utf-8")
        self._tensorboard_wanted = tensorboard
        self._purge_step = step + 1 if step else None
        self._board: SummaryWriter | None = None

    def step(self, scalars: Mapping[str, float]) -> None:
        """Record one step. ``scalars`` holds ``step`` and any numbers under names like ``loss/mmlm/de``."""
        if not self._writes:
            return
        _append(self._metrics, scalars)
        self._to_board(scalars, int(scalars["step"]), prefix="")
        self._console.step(scalars)

    def evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record the numbers of an evaluation after ``step`` steps (0: before the first one) as an event."""
        if not self._writes:
            return
        self.event("evaluation", step=step, scalars=dict(scalars))
        self._to_board(scalars, step, prefix="evaluation/")

    def event(self, name: str, /, **details: Any) -> None:
        """Record that something happened: ``save``, ``resume`` (with its step), ``skip``, ``signal`` ..."""
        if self._writes:
            _append(self._events, _event(name, details))

    def say(self, message: str) -> None:
        """Print a message for the person who watches, without tearing the live line."""
        if self._writes:
            self._console.say(message)

    def close(self) -> None:
        """Write out what TensorBoard still holds and close the files."""
        if self._writes:
            self._metrics.close()
            self._events.close()
            if self._board is not None:
                self._board.close()

    def _to_board(self, scalars: Mapping[str, float], step: int, prefix: str) -> None:
        if not self._tensorboard_wanted:
            return
        if self._board is None:
            # Here and not above: who reads a run (the report) need not wait for torch and tensorboard.
            from torch.utils.tensorboard import SummaryWriter

            folder = self._folder / TENSORBOARD_FOLDER
            self._board = SummaryWriter(str(folder), purge_step=self._purge_step)
        for name, value in scalars.items():
            if name != "step":
                self._board.add_scalar(prefix + name, value, step)
        if step % self._log_every == 0 or prefix:
            self._board.flush()


def append_event(run_folder: Path | str, event: str, /, **details: Any) -> None:
    """Add an event to a run that this process does not train; nothing else in its folder is touched."""
    with (Path(run_folder) / EVENTS_FILE).open("a", encoding="utf-8") as file:
        _append(file, _event(event, details))


def read_metrics(run_folder: Path | str) -> list[dict[str, float]]:
    """The steps of a run in order: ``step`` as an integer, the rest as floats, nan and infinities too.

    Reads beside a run that still writes: an unfinished last line is left out.
    """
    return _parse(
        Path(run_folder) / METRICS_FILE,
        lambda line: {"step": int(line["step"]), **{k: float(v) for k, v in line.items() if k != "step"}},
    )


def read_events(run_folder: Path | str) -> list[dict[str, Any]]:
    """Everything that happened in a run, in order of time."""
    return _parse(Path(run_folder) / EVENTS_FILE, lambda line: {"time": "", "event": line["event"], **line})


def read_evaluations(run_folder: Path | str) -> dict[int, dict[str, float]]:
    """step -> numbers of the evaluation after it, without those that a later resume made void."""
    evaluations: dict[int, dict[str, float]] = {}
    for event in read_events(run_folder):
        if event["event"] == "evaluation":
            numbers = {name: float(value) for name, value in event["scalars"].items()}
            evaluations[event["step"]] = {**evaluations.get(event["step"], {}), **numbers}
        elif event["event"] == "resume":
            evaluations = {step: e for step, e in evaluations.items() if step <= event["step"]}
    return dict(sorted(evaluations.items()))


def _event(name: str, details: Mapping[str, Any]) -> dict[str, Any]:
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, **details}


def _append(file: TextIO, line: Mapping[str, Any]) -> None:
    # One write of a whole line and a flush: a killed process leaves at most one torn line, at the end.
    file.write(json.dumps(_plain(line), ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: scalars of torch and numpy as numbers, nan and infinities as text."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def _parse(path: Path, read: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a file as ``read`` takes them; a damaged one is left out with a warning that names it."""
    if not path.exists():
        return []
    *lines, _torn_or_empty = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(read(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError):
            print(f"{path}:{number}: this line is damaged and left out", file=sys.stderr)
    return found


def _keep_lines(path: Path, last_step: int | None) -> None:
    """Cut a torn last line and lines of steps after ``last_step`` from a file that an earlier run left."""
    if not path.exists():
        return
    old = path.read_bytes()
    lines = old.split(b"\n")[:-1]
    if last_step is not None:
        lines = [line for line in lines if _step_of(line, otherwise=0) <= last_step]
    new = b"".join(line + b"\n" for line in lines)
    if new != old:
        # Beside, then renamed: a kill in between loses nothing.
        beside = path.with_name(path.name + ".new")
        with beside.open("wb") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)


def _step_of(line: bytes, otherwise: int) -> int:
    """The step of a line of metrics; a damaged one stays where it is."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return otherwise
