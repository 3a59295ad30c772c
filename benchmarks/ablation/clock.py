"""The clock on the wall: how long each run took, start and evaluations included, and the commands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILE = "wall.jsonl"  # beside the run folders: a line for each run that ended or was ended, and one for each command


class Commands(NamedTuple):
    """What the commands took that a set of runs needed."""

    seconds: float
    number: int
    at_once: int  # runs at a time, at most
    cores: int


def record_run(folder: Path, name: str, seconds: float) -> None:
    """A process of the run ``name`` ended after ``seconds``; a run that goes on later has several."""
    _append(folder, {"run": name, "seconds": seconds})


def record_command(folder: Path, runs: Sequence[str], seconds: float, at_once: int, cores: int) -> None:
    """A command that had ``runs`` to do ended after ``seconds``."""
    _append(folder, {"runs": list(runs), "seconds": seconds, "at_once": at_once, "cores": cores})


def seconds_of(folder: Path) -> dict[str, float]:
    """Seconds of each run by its name, over all its processes."""
    found: dict[str, float] = {}
    for line in _lines(folder):
        if "run" in line:
            found[line["run"]] = found.get(line["run"], 0.0) + line["seconds"]
    return found


def commands_of(folder: Path, names: Iterable[str]) -> Commands | None:
    """The commands that had any of the runs ``names`` to do; None if nothing is written down."""
    wanted = set(names)
    found = [line for line in _lines(folder) if wanted & set(line.get("runs", ()))]
    if not found:
        return None
    most = max(found, key=lambda line: line["at_once"])
    return Commands(sum(line["seconds"] for line in found), len(found), most["at_once"], most["cores"])


def _append(folder: Path, line: dict[str, Any]) -> None:
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE
    if not path.exists():
        return []
    # Behind the last line break stands what a killed command did not finish.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]
