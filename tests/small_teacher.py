"""A teacher that costs nothing, and a small run that learns its margins: triplets of its own and pairs of the pool."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from data.lessons import Options, teach
from data.preparation import prepare
from data.recipe import parse_recipe, read_recipe
from data.store import TokenStore
from data.teacher import Teacher
from tests.small_run import write_small_recipe
from training.config import Recipe

WIDTH = 24
TRIPLETS = (
    "  triplets: {{kind: scored, format: jsonl, path: {folder}/triplets.jsonl, anchor: a, positive: p, negatives: n,"
    " scores: s, language: {{field: lang}}, candidates_language: en}}\n"
)
TASKS = (
    "  adaptive_margin: {{weight: 4, loss_weight: 2.0, negatives: 3, offset: 0.1}}\n"
    "  triplet_alignment: {{weight: 2, loss_weight: 0.25, negatives: 2}}\n"
    "  in_batch_margin: {{teacher: {folder}/teacher, form: softplus, loss_weight: 0.5, maximum: 0.8}}\n"
)


class SmallTeacher(Teacher):
    """Means of signs that are drawn for every three letters: texts that share words lie together."""

    cross_encoder = False

    def __init__(self, stop_after: int | None = None) -> None:
        """With ``stop_after`` it is interrupted in the call after so many."""
        self.texts: list[str] = []
        self._calls, self._stop_after = 0, stop_after

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if self._calls == self._stop_after:
            raise KeyboardInterrupt
        self._calls += 1
        self.texts += texts
        vectors = np.stack(
            [sum((_signs(text[i : i + 3]) for i in range(len(text))), np.zeros(WIDTH)) for text in texts]
        )
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@cache  # a generator is slow to make, and texts repeat their letters
def _signs(letters: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(letters.encode())).choice([-1.0, 1.0], WIDTH)


def write_teacher(folder: Path) -> Path:
    """A folder that looks like an encoder's."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    return folder


def write_margin_recipe(folder: Path) -> Path:
    """Corpora, triplets, token store, the teacher's vectors, and recipe.yaml in ``folder``."""
    path = write_small_recipe(folder)
    rows = [
        json.loads(line)["t"] for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    random = np.random.default_rng(5)
    with (folder / "triplets.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            language = [name for name in row if name != "en"][number % 3]
            others = random.choice(
                [r["en"] for r in rows if r is not row], 1 + number % 3, replace=False
            ).tolist()
            scores = [0.9, *random.uniform(0.0, 1.0, len(others)).round(3).tolist()]
            triplet = {"lang": language, "a": row[language], "p": row["en"], "n": others, "s": scores}
            file.write(json.dumps(triplet, ensure_ascii=False) + "\n")
    text = path.read_text(encoding="utf-8")
    text = text.replace("lexicons:", TRIPLETS.format(folder=folder) + "lexicons:")
    tasks = text[text.index("tasks: {") : text.index("batch:")]
    listed = tasks.removeprefix("tasks: {").rstrip().removesuffix("}").replace("}, ", "}\n  ")
    text = text.replace(tasks, f"tasks:\n  {listed}\n{TASKS.format(folder=folder)}")
    path.write_text(text, encoding="utf-8")
    prepare(parse_recipe(read_recipe(path), Recipe), workers=1, say=lambda message: None)
    store = TokenStore.open(folder / "store")
    options = Options(write_teacher(folder / "model"), corpora=("rows", "sentences"), records=300)
    teach(store, options, folder / "teacher", teacher=SmallTeacher())
    return path
