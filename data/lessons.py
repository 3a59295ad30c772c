"""Lessons: a teacher reads a token store, and what it says is written beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.config import DataConfig
from data.inputs import differences, inputs_of
from data.progress import Progress
from data.recipe import UserError
from data.store import Corpus, TokenStore, sha256_of
from data.teacher import Teacher, is_cross_encoder, teacher_fingerprint
from data.teaching import MANIFEST, read_manifest, write_manifest

TEXTS_PER_BLOCK = 256  # after so many, what is done is written down
PARTIAL = "partial.json"


class Options(NamedTuple):
    """What is asked of which teacher."""

    teacher: Path
    prefix: str = ""
    corpora: tuple[str, ...] = ()  # empty: all that are trained on
    records: int | None = None  # at most so many of each parallel or monolingual corpus, evenly spaced
    batch: int = 32
    trust_code: bool = False  # modules that the teacher's folder brings along may run


def open_store(config: DataConfig) -> TokenStore:
    """The prepared store of a recipe; UserError if it is not there or was made of other inputs."""
    store = TokenStore.open(Path(config.store))
    different = differences(store.manifest["inputs"], inputs_of(config))
    if different:
        raise UserError(
            "\n  ".join([f"{config.store}: holds a token store of other inputs", *different])
            + "\nReplace it with: python -m data.prepare --recipe RECIPE --rebuild"
        )
    return store


def teach(
    store: TokenStore,
    options: Options,
    folder: Path,
    *,
    rebuild: bool = False,
    teacher: Teacher | None = None,
) -> str:
    """Let the teacher read ``store`` and write into ``folder``; returns what was done, in words.

    ``teacher`` is one that is open already; else the folder of ``options`` is opened, if there is work left.
    """
    if options.batch < 1 or (options.records is not None and options.records < 1):
        raise UserError("--batch and --records must be at least 1")
    cross_encoder = is_cross_encoder(options.teacher)
    corpora = _chosen(store, options, cross_encoder)
    asked = {
        "store": store.fingerprint,
        "teacher": {
            "folder": str(options.teacher.resolve()),
            "prefix": options.prefix,
            "fingerprint": teacher_fingerprint(options.teacher, options.prefix),
            "cross_encoder": cross_encoder,
        },
        "corpora": [corpus.name for corpus in corpora],
        "records": options.records,
    }
    if (folder / MANIFEST).exists() and not rebuild:
        present = read_manifest(folder)
        if all(present[key] == value for key, value in asked.items()):
            return f"{folder}: already taught"
        raise UserError(
            f"{folder}: holds what a teacher said about another store, or another teacher, or with other options;"
            " replace it with --rebuild, or keep both with --out FOLDER"
        )
    work = _Work.begin(folder, asked)
    if teacher is None:
        teacher = Teacher(
            options.teacher, prefix=options.prefix, batch=options.batch, trust_code=options.trust_code
        )
    blocks = {corpus.name: _blocks(corpus, options.records) for corpus in corpora}
    texts = {name: [len(_segments(store.corpora[name], b)) for b in of] for name, of in blocks.items()}
    total = sum(map(sum, texts.values()))
    with Progress("teaching", total, unit="text") as progress:
        for corpus in corpora:
            write = _scorer(corpus, teacher) if corpus.kind == "scored" else _embedder(corpus, teacher)
            for number, block in enumerate(blocks[corpus.name]):
                size = texts[corpus.name][number]
                if number >= work.done(corpus.name):
                    segments, values = write(block)
                    work.write(corpus, segments, values, number + 1)
                    progress.advance(size)
                else:
                    progress.skip(size)
    width = work.finish(asked)
    kind = "scores" if not width else f"vectors of width {width}"
    return f"{folder}: {total:,} texts of {len(corpora)} corpora, {kind}"


def _chosen(store: TokenStore, options: Options, cross_encoder: bool) -> list[Corpus]:
    """The corpora to read; UserError for one that is held out, unknown, or nothing for this kind of teacher."""
    for name in options.corpora:
        if name not in store.corpora:
            raise UserError(f"--corpora {name}: the store has {', '.join(store.corpora)}")
        if store.corpora[name].held_out:
            raise UserError(f"--corpora {name}: is held out, and no teacher reads it; leave it out")
        if cross_encoder and store.corpora[name].kind != "scored":
            raise UserError(
                f"--corpora {name}: a cross-encoder scores triplets, and this corpus is {store.corpora[name].kind};"
                " mine triplets first (python -m data.mine), or take an encoder"
            )
    found = [
        corpus
        for corpus in store.corpora.values()
        if not corpus.held_out
        and (not options.corpora or corpus.name in options.corpora)
        and not (cross_encoder and corpus.kind != "scored")
    ]
    if not found:
        raise UserError(
            f"--teacher {options.teacher}: a cross-encoder scores triplets, and the recipe has no scored corpus;"
            " mine triplets first (python -m data.mine), or take an encoder"
        )
    return found


def _blocks(corpus: Corpus, records: int | None) -> list[np.ndarray]:
    """The records to read, in blocks of about TEXTS_PER_BLOCK texts."""
    chosen = np.arange(corpus.records)
    if records is not None and records < corpus.records and corpus.kind != "scored":
        chosen = (np.arange(records) * corpus.records) // records
    starts = corpus.record_starts
    block = np.cumsum(starts[chosen + 1] - starts[chosen]) // TEXTS_PER_BLOCK
    return np.split(chosen, np.flatnonzero(np.diff(block)) + 1)


def _segments(corpus: Corpus, records: np.ndarray) -> np.ndarray:
    starts = corpus.record_starts
    return np.concatenate([np.arange(starts[r], starts[r + 1]) for r in records])


Write = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # records -> segments (n,), their rows


def _embedder(corpus: Corpus, teacher: Teacher) -> Write:
    def write(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        segments = _segments(corpus, records)
        return segments, teacher.embed([corpus.text(int(s)) for s in segments]).astype(np.float16)

    return write


def _scorer(corpus: Corpus, teacher: Teacher) -> Write:
    def write(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        segments = _segments(corpus, records)
        anchors = corpus.record_starts[corpus.segment_record[segments]]
        scores = np.full(len(segments), np.nan, dtype=np.float32)
        others = np.flatnonzero(segments != anchors)
        texts = [corpus.text(int(s)) for s in segments[others]]
        scores[others] = teacher.score([corpus.text(int(a)) for a in anchors[others]], texts)
        return segments, scores

    return write


class _Work:
    """The files that are being written, and how much of them is done."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self._state = folder, state
        self._open: dict[str, np.ndarray] = {}

    @classmethod
    def begin(cls, folder: Path, asked: dict[str, Any]) -> _Work:
        """Go on with what a command with the same arguments left, or start anew."""
        place = folder / PARTIAL
        try:
            state = json.loads(place.read_bytes())
        except (OSError, ValueError):
            state = None
        if not isinstance(state, dict) or state.get("asked") != asked:
            if folder.exists():
                if not (folder / MANIFEST).exists() and not place.exists() and any(folder.iterdir()):
                    raise UserError(f"{folder}: exists and holds something else; name another one with --out")
                shutil.rmtree(folder)
            state = {"asked": asked, "done": {}}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: can not be made: {error}; name another one with --out") from None
        return cls(folder, state)

    def done(self, corpus: str) -> int:
        """How many blocks of the corpus are written."""
        return self._state["done"].get(corpus, 0)

    def write(self, corpus: Corpus, segments: np.ndarray, values: np.ndarray, done: int) -> None:
        """Put rows into the corpus's file, then write down that so many blocks are done."""
        name = f"{corpus.name}.{'vectors' if values.ndim == 2 else 'scores'}.npy"
        if name not in self._open:
            self._open[name] = self._file(name, corpus, values)
        self._open[name][segments] = values
        flush = getattr(self._open[name], "flush")  # noqa: B009  # of the memory map
        flush()
        self._state["done"][corpus.name] = done
        beside = self.folder / (PARTIAL + ".new")
        beside.write_text(json.dumps(self._state), encoding="utf-8")
        beside.replace(self.folder / PARTIAL)

    def _file(self, name: str, corpus: Corpus, values: np.ndarray) -> np.ndarray:
        path = self.folder / name
        if self.done(corpus.name):
            return np.load(path, mmap_mode="r+")
        shape = (corpus.segments, *values.shape[1:])
        file = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
        file[:] = 0 if values.ndim == 2 else np.nan
        return file

    def finish(self, asked: dict[str, Any]) -> int:
        """Write the manifest; returns the width of the vectors, 0 where there are none."""
        self._open.clear()
        paths = sorted(self.folder.glob("*.npy"))
        widths = {
            np.load(path, mmap_mode="r").shape[1] for path in paths if path.name.endswith("vectors.npy")
        }
        width = widths.pop() if widths else 0
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}
        write_manifest(self.folder, {**asked, "width": width, "files": files})
        (self.folder / PARTIAL).unlink(missing_ok=True)
        return width
