"""Command: the corpora of a recipe -> a token store.

python -m data.prepare --recipe RECIPE [--set a.b=c ...] [--workers N] [--rebuild] [--verify]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data.command import data_config, recipe_parser, run
from data.counts import summary


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = recipe_parser("data.prepare", "Build the token store of a recipe.")
    parser.add_argument(
        "--workers", type=int, default=None, help="worker processes (default: one a core, up to 8)"
    )
    parser.add_argument(
        "--rebuild", action="store_true", help="replace a store that was made from other inputs"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read a store that is there already and compare every digest"
    )
    given = parser.parse_args(arguments)

    def work() -> str:
        config = data_config(given)
        from data.preparation import prepare  # here: who asks for help need not wait for what it imports

        store = prepare(config, workers=given.workers, rebuild=given.rebuild, verify=given.verify)
        return summary(store.manifest)

    return run(work, "the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
