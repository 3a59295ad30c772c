"""The command line of ``python -m data.lexicon``: a word list out of a recipe's translations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.command import data_config, recipe_parser, run
from data.recipe import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = recipe_parser(
        "data.lexicon",
        "Induce a word list from the translations that a recipe trains on; held-out corpora are not read.",
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="the word list to write; gzipped if it ends in .gz"
    )
    parser.add_argument(
        "--maximum-pairs", type=int, default=100_000, metavar="N",
        help="sentence pairs of a language that are read, drawn evenly (default: 100,000, about 2 GB of memory)",
    )  # fmt: skip
    given = parser.parse_args(arguments)

    def work() -> str:
        if not given.out.resolve().parent.is_dir():
            raise UserError(f"--out {given.out}: there is no folder {given.out.resolve().parent}.")
        if given.maximum_pairs < 1:
            raise UserError(f"--maximum-pairs {given.maximum_pairs}: at least one pair is needed.")
        config = data_config(given)
        from data.induction import induce_from

        return induce_from(config, given.out, given.maximum_pairs)

    return run(work, "nothing was written")
