"""The files of an ablation: the table in Markdown, every value as JSON, the plot."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ablation.clock import Commands
from benchmarks.ablation.table import Table, as_json, markdown
from training.config import Recipe
from training.console import duration

READING = (
    "Accuracies in percent on rows that were not trained on, mean ± standard deviation over the seeds. MMLM, CAMLM and"
    " BTMLM: masked tokens that are predicted right; the control is CAMLM without the other side. The others:"
    " bitext retrieval with English, mean of all languages and both directions. minutes: time in training steps;"
    " wall minutes: of the whole process, with its start and its evaluations."
)


def write_report(table: Table, out: Path, preset: str, seeds: Sequence[int], recipe: Recipe) -> None:
    """Write ``out`` with the endings .md, .svg and .json."""
    from benchmarks.ablation.figure import svg

    out.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks.ablation", *sys.argv[1:]])
    shape, batch = recipe.model, recipe.batch
    model = f"{shape.layers} layers of width {shape.width}" if shape.start_from is None else shape.start_from
    amount = f"{recipe.steps:,} steps of {batch.step_tokens:,} tokens, seeds {', '.join(map(str, seeds))}"
    page = [
        f"# Ablation of the training tasks, preset {preset}",
        f"Model: {model}; {amount}. Command: `{command}`",
        READING,
        *([_clock(table.clock)] if table.clock is not None else []),
        markdown(table).rstrip(),
        f"![The same figures as a plot; the dotted line is the first variant]({out.name}.svg)",
    ]
    _path(out, "md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    _path(out, "svg").write_text(svg(table), encoding="utf-8")
    values = {
        "preset": preset,
        "command": command,
        "steps": recipe.steps,
        "step_tokens": batch.step_tokens,
        "clock": table.clock._asdict() if table.clock is not None else None,
        "variants": as_json(table),
    }
    _path(out, "json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _clock(clock: Commands) -> str:
    commands = "one command" if clock.number == 1 else f"{clock.number} commands"
    return (
        f"Wall clock of all runs together: {duration(clock.seconds)} in {commands}, {clock.at_once} run(s) at a time on"
        f" {clock.cores} core(s)."
    )


def _path(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")
