"""Command: train every variant of the plan with every seed, and write one table and one plot of what they reached.

    python -m benchmarks.ablation [--preset quick] [--only tlm all] [--seeds 1 2 3] [--report]

Each run is an ordinary pretraining run in its own folder. Runs that are finished with the same settings are not
run again, so the command may be ended and given again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.ablation.plan import Run, base_recipe, chosen, lacking, read_plan, runs_of
from benchmarks.ablation.report import write_report
from benchmarks.ablation.runs import Launch, results_of, run_all
from benchmarks.ablation.table import plain, table_of
from benchmarks.turns.machine import cores
from data.recipe import UserError

PLAN = Path(__file__).parent / "plan.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status is 0 if all is there, 1 if a run failed, 2 for what only the person can mend."""
    try:
        return _ablation(_parser().parse_args(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _ablation(given: argparse.Namespace) -> int:
    plan = read_plan(given.plan)
    preset = chosen(plan.presets, given.preset, "--preset")
    for name in given.only:
        chosen(plan.variants, name, "--only")
        if name in lacking(plan):
            raise UserError(
                f"--only {name}: it needs {lacking(plan)[name]}, which python -m data.teach makes (see the plan)"
            )
    if given.at_once is not None and preset.launcher == "deepspeed":
        raise UserError(
            f"--at-once: a run of preset {given.preset} takes all devices, so there is one at a time"
        )
    seeds = list(dict.fromkeys(given.seeds or preset.seeds))
    # Every variant is checked before anything is spent on the first; the store's fingerprint is not known yet.
    runs_of(plan, preset, seeds, given.set, store="")
    recipe = base_recipe(plan, preset, given.set)
    from data.preparation import prepare
    from data.store import TokenStore

    store = TokenStore.open(Path(recipe.store)) if given.report else prepare(recipe)
    runs = runs_of(plan, preset, seeds, given.set, store.fingerprint)
    folder = given.runs / given.preset
    wanted = [
        run
        for run in runs
        if (run.variant in given.only if given.only else run.variant not in preset.without)
    ]
    failures: dict[str, str] = {}
    if not given.report:
        at_once = 1 if preset.launcher == "deepspeed" else given.at_once or cores()
        _introduce(wanted, folder, at_once)
        failures = run_all(wanted, Launch(folder, preset, plan.recipe, at_once))
    table = table_of(plan, runs, folder)
    if table.rows:
        out = given.out or Path("benchmarks/results") / f"ablation-{given.preset}"
        write_report(table, out, given.preset, seeds, recipe)
        print(f"\n{plain(table)}\n\n{out}.md, {out}.svg and {out}.json are written")
    if failures or not table.rows:
        print(f"error: {_shortfall(wanted, failures, folder)}", file=sys.stderr)
        return 1
    return 0


def _introduce(runs: Sequence[Run], folder: Path, at_once: int) -> None:
    finished = sum(results_of(folder, run) is not None for run in runs)
    variants = len({run.variant for run in runs})
    tokens = runs[0].recipe.steps * runs[0].recipe.batch.step_tokens
    print(
        f"ablation {folder}: {variants} variants x {len(runs) // variants} seeds, {tokens:,} tokens each;"
        f" {finished} of {len(runs)} runs are finished, {at_once} at a time",
        flush=True,
    )


def _shortfall(runs: Sequence[Run], failures: Mapping[str, str], folder: Path) -> str:
    if not failures:
        return f"{folder}: no run of this plan with these settings is finished"
    lines = [f"{run.variant}, seed {run.seed}: {failures[run.name]}" for run in runs if run.name in failures]
    return "\n  ".join(
        [f"{len(failures)} of {len(runs)} runs failed; the same command tries them again", *lines]
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--preset", default="quick", help="the size: quick or full (default: %(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="VARIANT",
        help="run these only; the table shows all that is there",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="instead of the preset's")
    parser.add_argument("--report", action="store_true", help="run nothing, write the table of what is there")
    parser.add_argument(
        "--at-once", type=_positive, metavar="N", help="runs at the same time (default: one a core)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of all variants"
    )
    parser.add_argument("--plan", type=Path, default=PLAN, help="what is compared (default: %(default)s)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/ablation"), help="where run folders go (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="files to write, without ending (default: benchmarks/results/ablation-PRESET)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
