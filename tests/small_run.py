"""A small run on real text: the first rows of the demo's corpora, a small vocabulary, a small encoder."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

DEMO = Path("data/corpora/demo")

RECIPE = """
name: small
seed: 3
steps: 6
precision: fp32
workers: 0
store: {folder}/store
maximum_tokens: 64
tokenizer: {{train: {{vocabulary_size: 2000}}}}
corpora:
  rows: {{kind: parallel, format: jsonl, path: {folder}/rows.jsonl, translations: t}}
  sentences: {{kind: monolingual, format: jsonl, path: {folder}/sentences.jsonl, text: text, language: {{field: lang}}}}
  test: {{kind: parallel, format: jsonl, path: {folder}/test.jsonl, translations: t, held_out: true}}
lexicons: [{{path: {folder}/lexicon.tsv}}]
tasks: {{mmlm: {{}}, tlm: {{}}, camlm: {{}}, translation_alignment: {{weight: 2}}, mixed_alignment: {{}}}}
batch: {{step_tokens: 4096, row_tokens: 512, microbatch_tokens: 1024}}
model: {{layers: 2, width: 32, heads: 2, positions: 66}}
optimizer: {{learning_rate: 1e-3, warmup_steps: 2}}
evaluation:
  retrieval: {{test: {{corpus: test}}, among: {{corpus: test, among: [rows]}}}}
  masked: [test]
  maximum_rows: 4
  other_pairs: 3
checkpoint: {{every: 2, keep: 2}}
log: {{every: 1, tensorboard: false}}
"""


def write_small_recipe(folder: Path) -> Path:
    """Write corpora and recipe.yaml into ``folder``; the store is not prepared yet."""
    for name, source, stride, count in (
        ("rows", "parallel_train", 10, 160),
        ("sentences", "mono", 40, 500),
        ("test", "parallel_test", 10, 20),
    ):
        lines = gzip.decompress((DEMO / f"{source}.jsonl.gz").read_bytes()).split(b"\n")[:-1]
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines[::stride][:count]) + b"\n")
    _write_lexicon(folder)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return path


def _write_lexicon(folder: Path) -> None:
    """The entries whose words stand in the texts: opening the whole would take most of a small run."""
    texts = (folder / "rows.jsonl").read_text(encoding="utf-8") + (folder / "sentences.jsonl").read_text(
        encoding="utf-8"
    )
    known = set(re.findall(r"\w+", texts.casefold()))
    kept = []
    for line in gzip.decompress((DEMO / "lexicon.tsv.gz").read_bytes()).decode().splitlines():
        _, english, translation, *_ = line.split("\t")
        if any(known.issuperset(re.findall(r"\w+", side.casefold())) for side in (english, translation)):
            kept.append(line)
    (folder / "lexicon.tsv").write_text("\n".join(kept) + "\n", encoding="utf-8")
