"""Command: hard negatives out of a recipe's translations, by a teacher's vectors -> a scored corpus.

    python -m data.teach --recipe RECIPE --teacher FOLDER            # the vectors
    python -m data.mine --recipe RECIPE --out triplets.jsonl.gz      # anchor, positive, negatives, scores

An anchor is a text in one language, its positive a translation, its negatives the texts in the positive's language
that are nearest to the anchor and not of its group (not translations of the same sentence). The search is exact, in
blocks. Held-out corpora have no vectors, so nothing of them is ever mined.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data.command import data_config, not_written, recipe_parser, run
from data.mining_options import Options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = recipe_parser("data.mine", "Mine hard negatives with a teacher's vectors.")
    add = parser.add_argument
    default = Options()
    add("--vectors", type=Path, help="folder of data.teach (default: the store's folder, with .teacher)")
    add("--out", type=Path, required=True, help="the scored corpus, .jsonl or .jsonl.gz")
    add("--negatives", type=int, default=default.negatives, help="of a triplet (default: %(default)s)")
    add(
        "--pairs",
        default=default.pairs,
        metavar="LANGUAGE",
        help="only directions from or into this language",
    )
    add("--triplets", type=int, help="at most so many, spread evenly over the directions")
    add(
        "--range-min",
        type=int,
        default=default.range_min,
        help="leave out so many nearest (default: %(default)s)",
    )
    add(
        "--range-max",
        type=int,
        default=default.range_max,
        help="look at so many nearest (default: %(default)s)",
    )
    add("--max-score", type=float, help="a negative's score is at most this")
    add("--absolute-margin", type=float, help="and at least so far below the positive's")
    add(
        "--relative-margin",
        type=float,
        help="and at least this part below the positive's: 0.05 is 95 %% of it",
    )
    add(
        "--sampling",
        choices=("top", "random"),
        default=default.sampling,
        help="of what is left: the nearest, or drawn",
    )
    add("--seed", type=int, default=default.seed)
    given = parser.parse_args(arguments)

    def work() -> str:
        config = data_config(given)
        from data.lessons import open_store
        from data.mining import mine
        from data.teaching import Teaching

        options = Options(**{name: getattr(given, name) for name in Options._fields})
        try:
            store = open_store(config)
            teaching = Teaching.open(given.vectors or Path(config.store + ".teacher"), store)
            return mine(store, teaching, options, given.out)
        except OSError as error:
            raise not_written(error) from None

    return run(work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
