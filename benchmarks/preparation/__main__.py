"""What does a token cost from text to disk, beside Megatron-LM's way and Hugging Face datasets?

    python -m benchmarks.preparation [--megabytes N] [--rounds N] [--out FOLDER]

Every contestant reads the same JSON Lines with the same tokenizer, does all of its work in one process, and is timed
by the processor seconds of that process, imports left out. Megatron-LM's tools/preprocess_data.py takes line by line:
JSON, the tokenizer for one text, one document to the builder of its indexed dataset (megatron-core's where it can be
imported, else the same few calls written down here). It calls the tokenizer through transformers; beside it stands the
same with the tokenizer called directly. Calque's store also holds the texts, their groups, checksums and counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.preparation.contestants import CONTESTANTS
from benchmarks.tables import markdown, plain

RESULTS = Path("benchmarks/results")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preparation", description=__doc__)
    parser.add_argument(
        "--megabytes",
        type=float,
        default=2.9,
        help="of text; 2.9 is every sentence once (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="each contestant's turns (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where to write (default: %(default)s)")
    given = parser.parse_args()
    from benchmarks.preparation.builder import Builder, builder
    from benchmarks.preparation.corpus import write_corpus

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, int(given.megabytes * 1e6))
        times: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
        for _ in range(given.rounds):
            for name, runs in times.items():
                runs.append(_run(name, folder))
    counts = {name: {int(each["tokens"]) for each in runs} for name, runs in times.items()}
    speed = {
        name: statistics.median(each["tokens"] / each["seconds"] for each in runs)
        for name, runs in times.items()
    }
    rows = [["from JSON Lines to disk", "tokens", "tokens/s of one core", "Calque is"]]
    rows += [
        [name, f"{min(counts[name]):,}", f"{speed[name]:,.0f}", f"{speed['Calque'] / speed[name]:.2f} x"]
        for name in CONTESTANTS
    ]
    print(plain(rows))
    of = "megatron-core's" if builder() is not Builder else "as megatron-core's"
    what = f"{given.megabytes:g} MB of the demo's sentences in 22 languages"
    note = f"{what}, median of {given.rounds} rounds, builder {of}"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "preparation.md").write_text(f"{markdown(rows)}\n\n{note}\n", encoding="utf-8")
    (given.out / "preparation.json").write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


def _run(name: str, folder: Path) -> dict[str, float]:
    """One contestant, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.preparation.worker", name, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
