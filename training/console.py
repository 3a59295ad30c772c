"""The line a person watches: the scalars of a step as text, plain in a log file, live on a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from typing import TextIO

CLEAR_LINE = "\r\x1b[K"


def duration(seconds: float) -> str:
    """``seconds`` as 0:42, 4:10 or 1:04:10; a value that is not finite or negative as ``-``."""
    if not 0 <= seconds < float("inf"):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def tasks_of(scalars: Mapping[str, float], prefix: str = "loss") -> list[str]:
    """Names of the tasks that have ``prefix/TASK`` in ``scalars``, in the order in which they stand there."""
    parts = [key.split("/") for key in scalars]
    return [part[1] for part in parts if len(part) == 2 and part[0] == prefix]


def console_line(scalars: Mapping[str, float], total_steps: int) -> str:
    """One step as one aligned line.

    ``step 120/600  20.0%  eta 4:10 | loss 3.412 | mmlm 6.214 20.1% ... | lr 5.0e-04 | 12,345 tok/s``; the
    percentage after a task's loss is its share of the tokens, followed by ``/budget`` where the two differ by
    more than half a point. What ``scalars`` lacks is left out.
    """
    step = int(scalars["step"])
    digits = len(str(total_steps))
    head = f"step {step:>{digits}}/{total_steps}"
    if total_steps > 0:
        head += f" {step / total_steps:6.1%}"
    if "eta_seconds" in scalars:
        head += f"  eta {duration(scalars['eta_seconds']):>5}"
    parts = [head]
    if "loss" in scalars:
        parts.append(f"loss {scalars['loss']:6.3f}")
    parts += [_task(task, scalars) for task in tasks_of(scalars)]
    if scalars.get("mixed/rejected_share", 0.0) >= 0.005:
        parts.append(f"mixed rejected {scalars['mixed/rejected_share']:.1%}")
    for key, form in (
        ("learning_rate", "lr {:.1e}"),
        ("grad_norm", "norm {:6.2f}"),
        ("temperature", "temp {:.3f}"),
        ("tokens_per_second", "{:7,.0f} tok/s"),
        ("packing_efficiency", "packed {:5.1%}"),
        ("memory_gib", "{:.1f} GiB"),
    ):
        if key in scalars:
            parts.append(form.format(scalars[key]))
    return " | ".join(parts)


def _task(task: str, scalars: Mapping[str, float]) -> str:
    text = f"{task} {scalars[f'loss/{task}']:6.3f}"
    share, budget = scalars.get(f"share/{task}"), scalars.get(f"budget/{task}")
    if share is not None:
        text += f" {share:5.1%}"
        if budget is not None and abs(share - budget) > 0.005:
            text += f"/{budget:.1%}"
    return text


class Console:
    """Prints lines; on a terminal the newest step stands in a last line that is overwritten."""

    def __init__(self, total_steps: int, log_every: int, out: TextIO | None = None) -> None:
        self.total_steps = total_steps
        self.log_every = max(1, log_every)
        self.out = out if out is not None else sys.stdout
        self.live = self.out.isatty()
        self._first = True

    def step(self, scalars: Mapping[str, float]) -> None:
        """Show a step: for good if it is the first, an n-th (``log_every``) or the last one, else live."""
        step = int(scalars["step"])
        line = console_line(scalars, self.total_steps)
        if self._first or step % self.log_every == 0 or step == self.total_steps:
            self._first = False
            self.say(line)
        elif self.live:
            self.out.write(CLEAR_LINE + line[: shutil.get_terminal_size().columns - 1])
            self.out.flush()

    def say(self, message: str) -> None:
        """Print ``message`` on lines of its own."""
        self.out.write((CLEAR_LINE if self.live else "") + message + "\n")
        self.out.flush()
