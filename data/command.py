"""What the commands of data share: the recipe on the command line, and how a command ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from data.config import DataConfig
from data.recipe import UserError, parse_recipe, read_recipe


def recipe_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser of ``python -m module`` that knows --recipe and --set."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--recipe", required=True, help="the recipe, a YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="override a key of the recipe"
    )
    return parser


def data_config(given: argparse.Namespace) -> DataConfig:
    """The data sections of the recipe that was given."""
    return parse_recipe(read_recipe(given.recipe, given.set), DataConfig, other_sections=True)


def run(work: Callable[[], str], interrupted: str) -> int:
    """Print what ``work`` returns; the exit status is 0, 2 after a UserError, 130 after Ctrl-C (``interrupted``)."""
    try:
        print(work())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0


def not_written(error: OSError) -> UserError:
    """A full disk, or a place that can not be written to."""
    return UserError(f"could not be written: {error}; name another place with --out")
