"""Command: ``python -m training.report RUN`` writes one page about a run, RUN/report.html."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.recipe import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the status is 2 where there is no run to tell of."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description="One page about a run.")
    parser.add_argument("run", type=Path, help="the folder of a run")
    given = parser.parse_args(arguments)
    from training.report_page import write_report

    try:
        print(write_report(given.run))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
