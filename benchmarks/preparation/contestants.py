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
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import markdown, plain
from data.config import DataConfig
from data.sources import read_corpus

DEMO = Path("data/corpora/demo")
RESULTS = Path("benchmarks/results")
VOCABULARY = 16384


def calque(folder: Path) -> int:
    """The whole preparation, of a store that is not there yet."""
    from data.preparation import prepare

    shutil.rmtree(folder / "store", ignore_errors=True)
    config = _config(folder, "store", {"path": str(folder / "tokenizer")})
    store = prepare(config, workers=1, say=lambda message: None)
    return int(store.manifest["corpora"]["text"]["tokens"])


def megatron(folder: Path) -> int:
    """Line by line, the tokenizer called through transformers, as Megatron-LM does."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"))
    return _line_by_line(folder, lambda text: tokenizer(text, add_special_tokens=False).input_ids)


def megatron_direct(folder: Path) -> int:
    """Line by line, the tokenizer called directly."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    return _line_by_line(folder, lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def hugging_face(folder: Path) -> int:
    """datasets: JSON to Arrow, then map in batches with the fast tokenizer."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"))
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        rows = datasets.load_dataset(
            "json", data_files=str(folder / "text.jsonl"), cache_dir=cache, split="train"
        )
        made = rows.map(
            lambda batch: {"ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
            batched=True,
            remove_columns=rows.column_names,
        )
        return sum(map(len, made.with_format("numpy")["ids"]))


CONTESTANTS: dict[str, Callable[[Path], int]] = {
    "Calque": calque,
    "Megatron-LM's way": megatron,
    "the same, tokenizers called directly": megatron_direct,
    "datasets.map, batched": hugging_face,
}


class _Builder:
    """What megatron-core's IndexedDatasetBuilder does with a document, where that package is not installed."""

    def __init__(self, path: str, dtype: type) -> None:
        self._file, self._dtype = open(path, "wb"), dtype
        self._lengths: list[int] = []
        self._documents = [0]

    def add_document(self, ids: list[int], lengths: list[int]) -> None:
        self._file.write(np.array(ids, dtype=self._dtype).tobytes())
        self._lengths.extend(lengths)
        self._documents.append(len(self._lengths))

    def finalize(self, path: str) -> None:
        self._file.close()
        np.savez(path, np.array(self._lengths, np.int32), np.array(self._documents, np.int64))


def builder() -> Any:
    """megatron-core's builder, or ours like it."""
    try:
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    except ImportError:
        return _Builder
    return IndexedDatasetBuilder


def _line_by_line(folder: Path, encode: Callable[[str], list[int]]) -> int:
    made = builder()(str(folder / "text.bin"), dtype=np.int32)
    tokens = 0
    with (folder / "text.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            ids = encode(json.loads(line)["text"])
            if ids:
                made.add_document(ids, [len(ids)])
                tokens += len(ids)
    made.finalize(str(folder / "text.idx"))
    return tokens


def _config(folder: Path, store: str, tokenizer: dict[str, Any], **others: Any) -> DataConfig:
    text = {"kind": "monolingual", "format": "jsonl", "path": str(folder / "text.jsonl"), "text": "text"}
    return DataConfig.model_validate(
        {
            "store": str(folder / store),
            "maximum_tokens": 100_000,  # nobody cuts
            "tokenizer": tokenizer,
            "corpora": {"text": {**text, "language": {"field": "lang"}, **others}},
        }
    )


def write_corpus(folder: Path, size: int) -> None:
    """Sentences of the demo in all its languages, two by two, and a tokenizer of them."""
    from data.preparation import prepare

    sentences: dict[str, list[str]] = {}
    path = {"path": str(DEMO / "mono.jsonl.gz")}
    for item in read_corpus(_config(folder, "", {"path": "none"}, **path).corpora["text"], 10_000):
        if isinstance(item, tuple):
            sentences.setdefault(item[1].language, []).append(item[1].text)  # type: ignore[union-attr]
    draw = random.Random(1)
    pairs = [
        (language, f"{first} {second}")
        for language, mine in sorted(sentences.items())
        for first, second in zip(mine[::2], mine[1::2], strict=False)
    ]
    draw.shuffle(pairs)
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for language, text in cycle(pairs):  # each once, before any is there again
            size -= file.write(json.dumps({"text": text, "lang": language}, ensure_ascii=False) + "\n")
            if size <= 0:
                break
    trained = prepare(
        _config(folder, "trained", {"train": {"vocabulary_size": VOCABULARY}}, **path),
        workers=1,
        say=lambda message: None,
    )
    trained.tokenizer_folder.rename(folder / "tokenizer")


def run(name: str, folder: Path) -> dict[str, float]:
    """One contestant, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.preparation", "--contestant", name, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """The command line."""
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
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contestant:
        import datasets  # noqa: F401
        import transformers  # noqa: F401

        builder()
        began = time.process_time()
        tokens = CONTESTANTS[given.contestant](given.folder)
        print(json.dumps({"tokens": tokens, "seconds": time.process_time() - began}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, int(given.megabytes * 1e6))
        times: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
        for _ in range(given.rounds):
            for name, runs in times.items():
                runs.append(run(name, folder))
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
    of = "megatron-core's" if builder() is not _Builder else "as megatron-core's"
    what = f"{given.megabytes:g} MB of the demo's sentences in 22 languages"
    note = f"{what}, median of {given.rounds} rounds, builder {of}"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "preparation.md").write_text(f"{markdown(rows)}\n\n{note}\n", encoding="utf-8")
    (given.out / "preparation.json").write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
