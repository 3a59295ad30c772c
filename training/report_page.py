"""The page about a run: RUN/report.html, from its telemetry.

    metrics.jsonl ─▶ losses, shares against budgets, learning rate, speed
    events.jsonl  ─▶ retrieval and masked accuracy at each evaluation, floors, shares of languages, what was decided

The page holds everything itself (figures as inline SVG), so it can be mailed. It can be made while the run
goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data.recipe import UserError
from training.console import duration, tasks_of
from training.figures import Points, curves, share_bars
from training.metrics import METRICS_FILE, read_evaluations, read_events, read_metrics

REPORT_FILE = "report.html"
RECIPE_FILE = "recipe.resolved.yaml"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.15rem .8rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}"
    ".figures{display:flex;flex-wrap:wrap;gap:1rem}img{max-width:100%}"
    "pre{background:#f6f6f6;padding:1rem;overflow:auto;font-size:13px}"
)

REJECTS = ("rejected", "one_language")  # of mixed text: all, and those that the model wrote in one language

Steps = Sequence[Mapping[str, float]]
Evaluations = Mapping[int, Mapping[str, float]]
Floors = Mapping[str, Mapping[str, float]]


def write_report(run_folder: Path | str) -> Path:
    """Write ``report.html`` into the run folder and return its path; UserError if no step is there."""
    folder = Path(run_folder)
    steps, evaluations, events = read_metrics(folder), read_evaluations(folder), read_events(folder)
    if not steps and not evaluations:
        raise UserError(f"{folder / METRICS_FILE}: no step is recorded there; give the folder of a run")
    floors = {event["name"]: event["scalars"] for event in events if event["event"] == "floor"}
    recipe = folder / RECIPE_FILE
    name = escape(folder.resolve().name)
    sections = [
        f"<h1>{name}</h1>",
        _summary(steps, evaluations, events),
        '<div class="figures">',
        *_figures(steps, evaluations, floors),
        "</div>",
        *(_retrieval_table(name, evaluations, floors) for name in _sets(evaluations)),
        _reject_table(steps),
        _share_table(events),
        _event_table(events),
        f"<h2>Recipe</h2><pre>{escape(recipe.read_text(encoding='utf-8'))}</pre>" if recipe.exists() else "",
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>\n'
    )
    page += "\n".join(section for section in sections if section) + "\n</html>\n"
    path = folder / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ text


def _summary(steps: Steps, evaluations: Evaluations, events: Sequence[Mapping[str, Any]]) -> str:
    lines: list[tuple[str, str]] = []
    if steps:
        last = steps[-1]
        lines.append(("steps", f"{last['step']:,}"))
        if "tokens" in last:
            lines.append(("tokens", f"{last['tokens']:,.0f}"))
        if "step_seconds" in last:
            lines.append(("time in steps", duration(sum(s.get("step_seconds", 0.0) for s in steps))))
        rejected, wrote_one = (sum(s.get(f"mixed/{name}", 0.0) for s in steps) for name in REJECTS)
        if rejected:
            why = f"{rejected:,.0f}, {wrote_one:,.0f} of them since the model wrote in no second language"
            lines.append(("mixed texts rejected", why))
        if "loss" in last:
            lines.append(("loss, first and last step", f"{steps[0]['loss']:.3f} → {last['loss']:.3f}"))
    for name in _sets(evaluations):
        series = _series(evaluations, f"retrieval/{name}/mean")
        if series:
            first, final = series[0][1], series[-1][1]
            lines.append((f"retrieval accuracy@1, {name}", f"{first:.1%} → {final:.1%}"))
    lines += [("complete", str(event["reason"])) for event in events if event["event"] == "complete"]
    for kind, what in (("resume", "resumed"), ("skip", "skipped steps")):
        count = sum(event["event"] == kind for event in events)
        if count:
            lines.append((what, str(count)))
    return _table(("", ""), lines)


def _retrieval_table(name: str, evaluations: Evaluations, floors: Floors) -> str:
    """Per language, mean of both directions with the pivot: first and last evaluation, and the floors."""
    mean = f"retrieval/{name}/mean"
    shown = {step: scores for step, scores in evaluations.items() if mean in scores}
    columns = [(f"after step {step:,}", shown[step]) for step in sorted({min(shown), max(shown)})]
    columns += [(floor, scores) for floor, scores in floors.items() if mean in scores]
    keys = {"mean": mean, "mean of other pairs": f"retrieval/{name}/mean_of_others"}
    rows = [
        [label, *(f"{scores[key]:.1%}" if key in scores else "-" for _, scores in columns)]
        for label, key in {**keys, **_languages(name, evaluations)}.items()
        if any(key in scores for _, scores in columns)
    ]
    title = f"<h2>Retrieval accuracy@1: {escape(name)}</h2><p>Mean of both directions with the pivot.</p>"
    return title + _table(("", *(label for label, _ in columns)), rows)


def _event_table(events: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for event in events:
        if event["event"] not in ("evaluation", "floor", "shares"):
            details = {key: value for key, value in event.items() if key not in ("time", "event")}
            rows.append((event["time"], event["event"], ", ".join(f"{k} {v}" for k, v in details.items())))
    return "<h2>Events</h2>" + _table(("time (UTC)", "event", "details"), rows) if rows else ""


def _reject_table(steps: Steps) -> str:
    """Mixed texts that were rejected, by the language of the original."""
    prefix = f"mixed/{REJECTS[0]}/"
    languages = sorted({key.removeprefix(prefix) for s in steps for key in s if key.startswith(prefix)})
    rows = [
        [
            language,
            *(f"{sum(s.get(f'mixed/{name}/{language}', 0.0) for s in steps):,.0f}" for name in REJECTS),
        ]
        for language in languages
    ]
    head = ("", "rejected", "of them written in one language")
    return "<h2>Mixed texts rejected</h2>" + _table(head, rows) if rows else ""


def _share_table(events: Sequence[Mapping[str, Any]]) -> str:
    """task x language: share of the task's tokens in the whole run, and what was due where that is another."""
    found = [event for event in events if event["event"] == "shares"]
    if not found:
        return ""
    shares = found[-1]["shares"]
    tasks = list(dict.fromkeys(name.split("/")[0] for name in shares))
    languages = sorted({name.split("/")[1] for name in shares})

    def cell(share: float, due: float) -> str:
        return f"{share:.1%}" if abs(share - due) < 0.005 else f"{share:.1%} / {due:.1%}"

    rows = [
        [language, *(cell(*shares[f"{t}/{language}"]) if f"{t}/{language}" in shares else "-" for t in tasks)]
        for language in languages
    ]
    title = f"<h2>Languages: share of each task's tokens after step {found[-1]['step']:,}</h2>"
    note = "<p>Realised, and the due share where it differs by half a point; a pair counts for both languages.</p>"
    return title + note + _table(("", *tasks), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    top = line("th", head) if any(head) else ""
    return "<table>" + top + "\n".join(line("td", row) for row in rows) + "</table>"


# --------------------------------------------------------------------------------------------- figures


def _figures(steps: Steps, evaluations: Evaluations, floors: Floors) -> list[str]:
    figures = []
    if steps:
        tasks = tasks_of(steps[-1])
        figures += [
            curves("Loss per task", {task: _column(steps, f"loss/{task}") for task in tasks}, smooth=True),
            share_bars("Share of the tokens, and budget", steps[-1], tasks_of(steps[-1], "share")),
            curves(
                "Health of pseudo tokens",
                {
                    name: _column(steps, f"pseudo/{name}")
                    for name in ("distinct_1", "copy_rate", "target_script_rate")
                },
                smooth=True,
            ),
            *_sampling_figures(steps, tasks_of(steps[-1], "share")),
            curves(
                "Mixed text: share of the records rejected",
                {"": _column(steps, "mixed/rejected_share")},
                smooth=True,
            ),
            curves("Learning rate", {"": _column(steps, "learning_rate")}),
            curves("Gradient norm", {"": _column(steps, "grad_norm")}, log=True),
            curves("Tokens per second", {"": _column(steps, "tokens_per_second")}),
            curves("Temperature of the comparisons", {"": _column(steps, "temperature")}),
            curves(
                "Mixed text: pairs found in a step by the model, in a microbatch by shared tokens alone",
                {
                    "model": _column(steps, "accuracy/mixed_alignment"),
                    "shared tokens": _column(steps, "mixed/bag_of_words_accuracy"),
                },
                smooth=True,
            ),
        ]
    for name in _sets(evaluations):
        prefix = f"retrieval/{name}/"
        thin = {code: _series(evaluations, key) for code, key in _languages(name, evaluations).items()}
        levels = {f: scores[f"{prefix}mean"] for f, scores in floors.items() if f"{prefix}mean" in scores}
        mean = {"mean": _series(evaluations, f"{prefix}mean")}
        figures.append(curves(f"Retrieval accuracy@1: {name}", mean, thin=thin, levels=levels, accuracy=True))
    masked = sorted(
        {k for s in evaluations.values() for k in s if k.startswith("masked/") and k.count("/") == 2}
    )
    accuracies = {key.split("/")[1]: _series(evaluations, key) for key in masked if key.endswith("/accuracy")}
    figures.append(curves("Accuracy at masked tokens, held out", accuracies, accuracy=True))
    losses = {key.split("/")[1]: _series(evaluations, key) for key in masked if key.endswith("/loss")}
    figures.append(curves("Loss at masked tokens, held out", losses))
    return [figure for figure in figures if figure]


def _sampling_figures(steps: Steps, tasks: Sequence[str]) -> list[str]:
    """What of the sampling changed while the run went on."""
    budgets = {task: _column(steps, f"sampling/budget/{task}") for task in tasks}
    names = ("language_temperature", "pair_temperature")
    temperatures = {name: _column(steps, f"sampling/{name}") for name in names}
    drawn = (("Budgets in force", budgets), ("Temperature of the sampling", temperatures))
    return [
        curves(title, lines)
        for title, lines in drawn
        if any(len({value for _, value in points}) > 1 for points in lines.values())
    ]


# ---------------------------------------------------------------------------------------------- numbers


def _sets(evaluations: Evaluations) -> list[str]:
    """Names of the retrieval sets, in the order of their first appearance."""
    keys = [key.split("/") for scores in evaluations.values() for key in scores]
    return list(dict.fromkeys(key[1] for key in keys if key[0] == "retrieval" and key[-1] == "mean"))


def _languages(name: str, evaluations: Evaluations) -> dict[str, str]:
    """language -> key of its mean over both directions with the pivot."""
    prefix = f"retrieval/{name}/language/"
    keys = sorted({key for scores in evaluations.values() for key in scores if key.startswith(prefix)})
    return {key.removeprefix(prefix): key for key in keys}


def _series(evaluations: Evaluations, key: str) -> Points:
    return [(step, scores[key]) for step, scores in evaluations.items() if key in scores]


def _column(steps: Steps, key: str) -> Points:
    return [(int(s["step"]), s[key]) for s in steps if math.isfinite(s.get(key, math.nan))]
