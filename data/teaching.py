"""What a teacher said about a token store: vectors of texts and scores of triplets, in a folder beside the store.

    manifest.json           which teacher, by its fingerprint; which store; sizes and digests of the other files
    CORPUS.vectors.npy      (S, Et) float16: unit vectors of the segments, zeros where a text was left out
    CORPUS.scores.npy       (S,) float32: scores of a scored corpus against the anchors, NaN at the anchors
Written by ``python -m data.teach``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.recipe import UserError
from data.settings.tasks import TasksConfig
from data.store import TokenStore, digest_of_values
from data.teacher import teacher_fingerprint

MANIFEST = "manifest.json"
FORMAT = "calque teaching"
VERSION = 1


class Teaching:
    """A complete folder of a teacher's vectors and scores. Cheap to open and to pickle: the files are mapped."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.fingerprint: str = manifest["digest"]
        self.width: int = manifest["width"]  # of the vectors; 0 where there are scores only

    def __reduce__(self) -> tuple[Any, ...]:
        return Teaching, (self.folder, self.manifest)

    @classmethod
    def open(cls, folder: str | Path, store: TokenStore, *, known: bool = False) -> Teaching:
        """What was said about ``store``; ``known``: the teacher was compared already, its files are not read.

        Raises:
            UserError: nothing is there, it is damaged, the store is another one than the teacher read, or the
                teacher's folder is still there and holds something else now.

        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        again = f"teach again: python -m data.teach --recipe RECIPE --teacher DIR --out {folder} --rebuild"
        if manifest["store"] != store.fingerprint:
            raise UserError(
                f"{folder}: the teacher read another token store than {store.folder}, so a corpus, the tokenizer or a"
                f" setting has changed; {again}"
            )
        for name, file in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise UserError(f"{path}: is missing or not of the size that was written; {again}")
        teacher = manifest["teacher"]
        place = Path(teacher["folder"])
        if (
            not known
            and place.is_dir()
            and teacher_fingerprint(place, teacher["prefix"]) != teacher["fingerprint"]
        ):
            raise UserError(f"{folder}: the teacher in {place} is not the one that was asked; {again}")
        return cls(folder, manifest)

    def vectors(self, corpus: str) -> np.ndarray | None:
        """(S, Et) float16 of the corpus's segments, zeros where there is none; None if it was not taught."""
        return self._files.get(f"{corpus}.vectors.npy")

    def scores(self, corpus: str) -> np.ndarray | None:
        """(S,) float32 of a scored corpus; None if it was not taught."""
        return self._files.get(f"{corpus}.scores.npy")

    def vector(self, corpus: str, segment: int) -> np.ndarray | None:
        """(Et,) of one text, None where there is none."""
        vectors = self.vectors(corpus)
        found = None if vectors is None else vectors[segment]
        return found if found is not None and found.any() else None

    @cached_property
    def _files(self) -> dict[str, np.ndarray]:
        return {name: np.load(self.folder / name, mmap_mode="r") for name in self.manifest["files"]}


class Taught(NamedTuple):
    """What a teacher said that a recipe's tasks ask for."""

    scores: Teaching | None = None  # of adaptive_margin, where they do not stand in the corpora
    vectors: Teaching | None = None  # of in_batch_margin

    @property
    def width(self) -> int:
        """Of the vectors, 0 where none are asked for."""
        return 0 if self.vectors is None else self.vectors.width

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name of the task -> fingerprint of what it reads."""
        named = {"adaptive_margin": self.scores, "in_batch_margin": self.vectors}
        return {name: teaching.fingerprint for name, teaching in named.items() if teaching is not None}

    @classmethod
    def open(cls, tasks: TasksConfig, store: TokenStore, *, known: bool = False) -> Taught:
        """The folders that ``tasks`` name, see ``Teaching.open``; UserError if one of them can not be used."""
        triplets, in_batch = tasks.adaptive_margin, tasks.in_batch_margin
        scores = (
            Teaching.open(triplets.teacher, store, known=known) if triplets and triplets.teacher else None
        )
        vectors = Teaching.open(in_batch.teacher, store, known=known) if in_batch else None
        if scores is not None:
            _check_scores(scores, store)
        if vectors is not None and not vectors.width:
            raise UserError(
                f"tasks.in_batch_margin.teacher: {vectors.folder} has scores and no vectors; ask an encoder for them:"
                " python -m data.teach --recipe RECIPE --teacher DIR"
            )
        return cls(scores, vectors)


def _check_scores(teaching: Teaching, store: TokenStore) -> None:
    """UserError if the teacher scored nothing, or left out a corpus that has no scores of its own."""
    scored = [c for c in store.corpora.values() if c.kind == "scored" and not c.held_out]
    missing = [corpus for corpus in scored if teaching.scores(corpus.name) is None]
    if len(missing) == len(scored) or any(np.isnan(corpus.segment_scores[1]) for corpus in missing):
        listed = ", ".join(corpus.name for corpus in missing) or "no corpus: the recipe has no scored one"
        raise UserError(
            f"tasks.adaptive_margin.teacher: {teaching.folder} has no scores of {listed}; score them with"
            " python -m data.teach, or leave the key out where the corpora have scores of their own"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, checked against its own digest."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: holds nothing of a teacher; python -m data.teach --recipe RECIPE --teacher DIR --out {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can not be read ({error}); teach again with --rebuild") from None
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise UserError(f"{path}: not what data.teach of this program writes; choose another folder")
    if manifest.get("digest") != _digest_of(manifest):
        raise UserError(f"{path}: was changed after it was written; teach again with --rebuild")
    return manifest


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write manifest.json with its digest; the last thing that is written."""
    whole = {"format": FORMAT, "version": VERSION, **content}
    whole["digest"] = _digest_of(whole)
    beside = folder / (MANIFEST + ".new")
    beside.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(folder / MANIFEST)


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return digest_of_values({key: value for key, value in manifest.items() if key != "digest"})
