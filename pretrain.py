"""Pretrain an encoder: read the command line, build the Trainer, fit. See README.md."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Run; returns the exit status: 0 done or stopped on demand, 2 for what only the person can mend."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--recipe", default="recipes/demo.yaml", help="what to train (default: %(default)s)")
    parser.add_argument(
        "--deepspeed_config",
        "--deepspeed-config",
        help="how to shard it (default: of ds_configs, zero3.json, without GPUs cpu.json;"
        " for one process one_process.json, in fp32 one_process_fp32.json)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where run folders go (default: %(default)s)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing, print the sizes: on paper, and on the meta device",
    )
    parser.add_argument(
        "--world",
        "--ranks",
        type=int,
        metavar="N",
        help="with --dry-run: plan for N GPUs, one process each, on all nodes together (tensor ranks x data ranks);"
        " none of them has to be here. Without it: for what is here",
    )
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # launchers add it
    parser.add_argument("--deepspeed", action="store_true", help=argparse.SUPPRESS)  # habit of other programs
    arguments = parser.parse_args()
    if arguments.world is not None and not arguments.dry_run:
        parser.error("--world belongs to --dry-run; a launcher says how many processes a run has")
    # Imports stand where their work begins: --help waits for no recipe's, a wrong recipe for no numpy or torch.
    from data.recipe import UserError, parse_recipe, read_recipe

    try:
        raw = read_recipe(arguments.recipe, arguments.set)
        from training import environment
        from training.config import Recipe
        from training.sharding import data_ranks, read_sharding, resolve_sharding, sharding_file

        recipe = parse_recipe(raw, Recipe)
        gpu = os.path.exists("/dev/nvidiactl") or arguments.world is not None
        environment.prepare()
        ranks = int(os.environ["WORLD_SIZE"]) if arguments.world is None else arguments.world
        path = Path(arguments.deepspeed_config or sharding_file(gpu, ranks, recipe.precision))
        sharding = read_sharding(path)
        if arguments.dry_run:
            from training.plan import print_plan

            if os.environ["RANK"] == "0":
                print_plan(recipe, raw, sharding, path, ranks, device="cuda" if gpu else "cpu")
            return 0
        # Its errors at once, before torch is imported; the Trainer asks again when it knows the ranks.
        resolve_sharding(sharding, path, recipe, raw.path, data_ranks(recipe, ranks))
        from training.trainer import Trainer

        Trainer(recipe, raw, sharding, path, arguments.runs).fit()
    except UserError as error:
        # Once a machine, since what is missing may be missing on one of them only.
        if os.environ.get("LOCAL_RANK", "0") == "0" or getattr(error, "said_by_every_rank", False):
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
