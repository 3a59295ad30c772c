"""Command: a teacher reads the corpora of a recipe; its vectors and scores are stored beside the token store.

    python -m data.teach --recipe RECIPE --teacher FOLDER [--prefix "query: "] [--corpora A B] [--records N]

An encoder gives a vector for every text of parallel and monolingual corpora and a score for every triplet of
scored ones; a cross-encoder gives scores alone. Held-out corpora are never read. Works offline; what was done
when the command was ended is not done again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data.command import data_config, not_written, recipe_parser, run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = recipe_parser("data.teach", "Store a teacher's vectors and scores of a recipe's corpora.")
    parser.add_argument(
        "--teacher", required=True, type=Path, help="a SentenceTransformer or a cross-encoder, a folder"
    )
    parser.add_argument(
        "--prefix", default="", help='put before every text, e.g. "query: " for multilingual-e5'
    )
    parser.add_argument(
        "--corpora", nargs="+", default=[], help="these only (default: all that are trained on)"
    )
    parser.add_argument(
        "--records", type=int, help="at most so many rows or sentences of each corpus, evenly spaced"
    )
    parser.add_argument("--batch", type=int, default=32, help="texts at a time (default: %(default)s)")
    parser.add_argument(
        "--trust-code", action="store_true", help="run modules that the teacher's folder brings along"
    )
    parser.add_argument(
        "--out", type=Path, help="where to write (default: the store's folder, with .teacher)"
    )
    parser.add_argument(
        "--rebuild", action="store_true", help="replace what another teacher or store left there"
    )
    given = parser.parse_args(arguments)

    def work() -> str:
        config = data_config(given)
        from data.lessons import Options, open_store, teach

        options = Options(
            given.teacher, given.prefix, tuple(given.corpora), given.records, given.batch, given.trust_code
        )
        folder = given.out or Path(config.store + ".teacher")
        try:
            return teach(open_store(config), options, folder, rebuild=given.rebuild)
        except OSError as error:
            raise not_written(error) from None

    return run(work, "the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
