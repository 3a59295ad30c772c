"""Mining: hard negatives among the texts of a store, by a teacher's vectors."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from data.keys import generator, key
from data.mining_options import Options
from data.nearest import Texts, nearest, rows_of, texts_of
from data.permutation import Permutation
from data.progress import Progress
from data.recipe import UserError
from data.store import Corpus, TokenStore
from data.teaching import Teaching

ANCHORS = 512  # of a block of the search


class Direction(NamedTuple):
    """Pairs (n,) of a text and its translation."""

    languages: tuple[str, str]
    corpora: np.ndarray
    anchors: np.ndarray  # segments
    positives: np.ndarray


def mine(store: TokenStore, teaching: Teaching, options: Options, out: Path) -> str:
    """Write the triplets to ``out`` and what they were made with beside it; returns what was done, in words."""
    _check(options, out)
    taught = {
        name: teaching.vectors(name) for name, corpus in store.corpora.items() if corpus.kind == "parallel"
    }
    vectors = [of_corpus for of_corpus in taught.values() if of_corpus is not None]
    corpora = [store.corpora[name] for name, of_corpus in taught.items() if of_corpus is not None]
    if not corpora:
        raise UserError(
            f"{teaching.folder}: has no vectors of a parallel corpus, so there are no positives;"
            " python -m data.teach with an encoder makes them"
        )
    known = {language: texts_of(corpora, vectors, language) for language in store.languages}
    directions = _chosen(_directions(store.languages, corpora, known, options.pairs), options)
    if not directions:
        wanted = "" if options.pairs == "all" else f" with language {options.pairs!r} (--pairs)"
        raise UserError(f"{teaching.folder}: no two languages of a row have vectors{wanted}")
    found: Counter[str] = Counter()
    scores: list[np.ndarray] = []
    beside = out.with_name(out.name + ".new")
    total = sum(len(direction.anchors) for direction in directions)
    try:
        with (
            _written(beside, out.suffix == ".gz") as file,
            Progress("mining", total, unit="triplet") as progress,
        ):
            for direction in directions:
                pool = known[direction.languages[1]]
                for triplet in _triplets(direction, pool, corpora, vectors, options):
                    progress.advance(1)
                    found["mined" if triplet else "without a negative that fits"] += 1
                    if triplet:
                        scores.append(np.array(triplet["scores"][:2]))
                        file.write(json.dumps(triplet, ensure_ascii=False).encode() + b"\n")
        if not found["mined"]:
            raise UserError("no negative fits the margins: widen --range-max or loosen the margins")
        origin = {
            "teacher": teaching.manifest["teacher"]["fingerprint"],
            "store": store.fingerprint,
            "options": options._asdict(),
        }
        out.with_name(out.name + ".origin.json").write_text(
            json.dumps(origin, indent=1) + "\n", encoding="utf-8"
        )
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    positive, negative = np.mean(scores, axis=0)
    counts = ", ".join(f"{count:,} {name}" for name, count in found.items())
    return (
        f"{out}: {counts}, in {len(directions)} directions; mean score of positives {positive:.3f}, of first negatives"
        f" {negative:.3f}\nas a corpus of a recipe:\n  mined: {{kind: scored, format: jsonl, path: {out},"
        " anchor: anchor, positive: positive,\n    negatives: negatives, scores: scores, language: {field: language},"
        " candidates_language: {field: candidates_language}}"
    )


@contextmanager
def _written(path: Path, zipped: bool) -> Iterator[IO[bytes]]:
    """A file to write; zipped without name and time, so that the same triplets are the same bytes."""
    with path.open("wb") as raw:
        if not zipped:
            yield raw
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
            yield cast(IO[bytes], file)


def _check(options: Options, out: Path) -> None:
    problems = [
        message
        for wrong, message in (
            (options.negatives < 1, "--negatives must be at least 1"),
            (options.triplets is not None and options.triplets < 1, "--triplets must be at least 1"),
            (options.range_min < 0, "--range-min must not be below 0"),
            (options.range_max <= options.range_min, "--range-max must be above --range-min"),
            (not out.resolve().parent.is_dir(), f"--out {out}: there is no folder {out.resolve().parent}"),
        )
        if wrong
    ]
    if problems:
        raise UserError("; ".join(problems))


def _directions(
    languages: Sequence[str], corpora: Sequence[Corpus], known: dict[str, Texts], wanted: str
) -> Iterator[Direction]:
    """Every ordered pair of languages, with the rows that hold both."""
    for one in languages:
        for other in languages:
            if one == other or (wanted != "all" and wanted not in (one, other)):
                continue
            numbers, anchors, positives = [], [], []
            for number, corpus in enumerate(corpora):
                a, p = (known[side].segments[known[side].corpora == number] for side in (one, other))
                _, of_a, of_p = np.intersect1d(
                    corpus.segment_record[a],
                    corpus.segment_record[p],
                    assume_unique=True,
                    return_indices=True,
                )
                numbers.append(np.full(len(of_a), number))
                anchors.append(a[of_a])
                positives.append(p[of_p])
            if any(map(len, anchors)):
                yield Direction((one, other), *map(np.concatenate, (numbers, anchors, positives)))


def _chosen(directions: Iterator[Direction], options: Options) -> list[Direction]:
    """The anchors that are mined: all, or as many of each direction as bring the wanted number together."""
    every = list(directions)
    if options.triplets is None:
        return every
    sizes = np.array([len(direction.anchors) for direction in every])
    taken = np.zeros_like(sizes)
    left = min(options.triplets, int(sizes.sum()))
    while left > 0:  # a direction that has no more leaves its part to the others
        open_ = np.flatnonzero(taken < sizes)
        part = np.full(len(open_), left // len(open_))
        part[: left % len(open_)] += 1
        part = np.minimum(part, (sizes - taken)[open_])
        taken[open_] += part
        left -= int(part.sum())
    found = []
    for direction, count in zip(every, taken, strict=True):
        order_key = key(options.seed, "mine", *direction.languages)
        chosen = np.sort(Permutation(len(direction.anchors), order_key)(np.arange(count)))
        if count:
            found.append(Direction(direction.languages, *(column[chosen] for column in direction[1:])))
    return found


def _triplets(
    direction: Direction,
    pool: Texts,
    corpora: Sequence[Corpus],
    vectors: Sequence[np.ndarray],
    options: Options,
) -> Iterator[dict | None]:
    """The triplets of a direction, None for an anchor that no negative fits."""
    for start in range(0, len(direction.anchors), ANCHORS):
        block = slice(start, start + ANCHORS)
        numbers, anchors, positives = (column[block] for column in direction[1:])
        of_anchors = rows_of(vectors, numbers, anchors)
        of_positives = np.einsum("ne,ne->n", of_anchors, rows_of(vectors, numbers, positives))
        groups = np.array([corpora[n].segment_groups[a] for n, a in zip(numbers, anchors, strict=True)])
        places, scores = nearest(of_anchors, groups, pool, vectors, options.range_max)
        for i, (number, anchor, positive) in enumerate(zip(numbers, anchors, positives, strict=True)):
            corpus = corpora[number]
            texts = corpus.text(int(anchor)), corpus.text(int(positive))
            negatives: dict[str, float] = {}
            for place, score in zip(
                places[i, options.range_min :], scores[i, options.range_min :], strict=True
            ):
                if np.isfinite(score) and _fits(float(score), float(of_positives[i]), options):
                    text = corpora[pool.corpora[place]].text(int(pool.segments[place]))
                    if text not in texts:
                        negatives.setdefault(text, float(score))
            kept = list(negatives)
            if options.sampling == "random":
                random = generator(options.seed, "mine", *direction.languages, corpus.name, int(anchor))
                kept = [kept[j] for j in np.sort(random.permutation(len(kept))[: options.negatives])]
            kept = kept[: options.negatives]
            if not kept:
                yield None
                continue
            one, other = direction.languages
            yield {
                "language": one,
                "candidates_language": other,
                "anchor": texts[0],
                "positive": texts[1],
                "negatives": kept,
                "scores": [round(float(of_positives[i]), 4), *(round(negatives[text], 4) for text in kept)],
            }


def _fits(score: float, of_positive: float, options: Options) -> bool:
    limits = [options.max_score]
    if options.absolute_margin is not None:
        limits.append(of_positive - options.absolute_margin)
    if options.relative_margin is not None:
        limits.append(of_positive - options.relative_margin * abs(of_positive))
    return all(limit is None or score <= limit for limit in limits)
