"""Command: a run or a checkpoint -> a Hugging Face and sentence-transformers folder, checked for parity.

    python -m training.export RUN_OR_CHECKPOINT OUT

No process group is needed. The folder opens offline with AutoModel, AutoModelForMaskedLM and SentenceTransformer.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.recipe import UserError
from training import environment


def main() -> int:
    """Export; exit status 2 for what the person can mend, a failed parity included."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a run folder or a checkpoint in it")
    parser.add_argument("out", type=Path, help="the folder to write")
    arguments = parser.parse_args()
    try:
        if not arguments.source.is_dir():
            raise UserError(f"{arguments.source}: there is no such folder.")
        environment.prepare()
        from training.exported import export
        from training.saved_run import load_run

        run = load_run(arguments.source)
        differences = export(run, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"exported step {run.step} to {arguments.out}; largest differences to the training model:")
    for name, value in differences.items():
        print(f"  {name:<17} {value:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
