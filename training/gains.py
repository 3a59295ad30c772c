"""Command: what a run gained: retrieval before and after, beside two honest floors, and nearest neighbours to look at.

python -m training.gains RUN EXPORT [--floors SECONDS]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.recipe import UserError, parse_recipe, read_recipe
from training import environment
from training.metrics import append_event, read_evaluations, read_metrics
from training.run_folder import RECIPE_FILE
from training.tables import print_figures, print_languages


def main() -> int:
    """Print what was gained."""
    parser = argparse.ArgumentParser(prog="python -m training.gains", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("export", type=Path, help="its export")
    parser.add_argument(
        "--floors",
        type=float,
        metavar="SECONDS",
        help="training time of the token means (default: the run's own)",
    )
    arguments = parser.parse_args()
    try:
        environment.prepare()
        raw = read_recipe(arguments.run / RECIPE_FILE)
        from training.config import Recipe

        recipe = parse_recipe(raw, Recipe)
        if not recipe.evaluation.retrieval:
            raise UserError(
                f"{arguments.run}: its recipe has no evaluation.retrieval, so there is nothing to show."
            )
        evaluations = read_evaluations(arguments.run)
        if len(evaluations) < 2:
            raise UserError(
                f"{arguments.run}: the run has no evaluation after its training yet; let it finish."
            )
        from training.build import open_data
        from training.neighbours import neighbours

        data = open_data(recipe, trains=False)
        first = next(iter(recipe.evaluation.retrieval.values())).corpus
        nearest_ones = neighbours(arguments.export, data, first)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    before, after = evaluations[min(evaluations)], evaluations[max(evaluations)]
    steps = read_metrics(arguments.run)
    trained = sum(step["step_seconds"] for step in steps)
    seconds = arguments.floors if arguments.floors is not None else trained
    print(
        f"training the token-mean floor for {seconds:.0f} s, as long as the encoder was trained ...",
        flush=True,
    )
    from training.floor_figures import floor_figures

    floors = floor_figures(data, recipe, seconds)
    for name, scalars in floors.items():
        append_event(arguments.run, "floor", name=name, scalars=scalars)
    figures = {"before": before, "after": after, **floors}
    print()
    for name in recipe.evaluation.retrieval:
        print_languages(figures, name)
        print()
    print_figures(figures)
    print(f"\nthe encoder lies in {arguments.export}; nearest neighbours by its vectors:")
    for language, text, other, nearest in nearest_ones:
        print(f"  {language}  {text}\n  {other}  {nearest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
