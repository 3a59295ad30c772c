"""The corpora of a recipe -> a complete store, in the folders of a workplace. What was done before is not done again.

    corpora ─▶ sieve ─▶ tokenizer ─▶ chunks ─▶ encode (workers) ─▶ spools ─▶ groups, counts ─▶ Arrow files ─▶ manifest

Everything up to the spools is noted in journals as it goes; what comes after takes seconds beside it and begins anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.arrow_writer import MappedColumns
from data.checksums import digest_of_file
from data.cleaning.examination import open_sieve
from data.cleaning.sieve import Sieve
from data.config import DataConfig, TrainTokenizerConfig
from data.corpus_writer import CorpusWriter
from data.counts import as_tsv
from data.encode import encode_chunk
from data.groups import number_groups
from data.journal import flush_folder
from data.progress import Progress
from data.recipe import UserError
from data.records import Record, segments
from data.sources import Item, Reject, Where, files_of_corpus
from data.store import IDS, digest_of_values, sha256_of, write_manifest
from data.tokenizer import Tokenizer, copy_tokenizer
from data.tokenizer_training import train_tokenizer
from data.workers import WorkerPool, in_a_process
from data.workplace import Workplace

COUNTS, REJECTS = "counts.tsv", "rejects.tsv"
SEGMENTS_PER_CHUNK = 4096
CHARACTERS_PER_CHUNK = 1 << 19  # what is under way at a time are a few chunks a worker
REJECTS_PER_CHUNK = 8192
Say = Callable[[str], None]


def build(
    config: DataConfig, inputs: dict[str, Any], workplace: Workplace, pool: WorkerPool, say: Say
) -> None:
    """Make the store of ``config`` in the workplace, complete with its manifest, which is written last."""
    cleaned = open_sieve(config, workplace.work / "cleaning", pool)
    tokenizer = _tokenizer(config, workplace, say)
    writers = _encoded(config, cleaned, tokenizer, workplace.work, pool)
    number_groups(
        [writer.file("number") for writer in writers],
        [writer.file("joined") for writer in writers],
        [writer.file("group") for writer in writers],
        workplace.work / "groups",
    )
    languages = tuple(sorted({language for writer in writers for language in writer.languages}))
    folder = workplace.store
    corpora = {writer.name: writer.write(folder, languages) for writer in writers}
    _write_counts_of_ids(writers, languages, tokenizer.vocabulary_size, workplace)
    _write_tables(writers, corpora, folder)
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    files = {
        name: {"bytes": (folder / name).stat().st_size, "digest": digest_of_file(folder / name)}
        for name in names
    }
    content = {
        "languages": list(languages),
        "maximum_tokens": config.maximum_tokens,
        "tokenizer": {
            "vocabulary_size": tokenizer.vocabulary_size,
            "mask_id": tokenizer.mask_id,
            "fingerprint": tokenizer.fingerprint,
        },
        "corpora": corpora,
        # mixed texts are made of them
        "lexicons": [sha256_of(Path(lexicon.path)) for lexicon in config.lexicons],
    }
    rows = {name: file["digest"] for name, file in files.items() if name.endswith(".arrow")}
    fingerprint = digest_of_values({"content": content, "files": rows})
    write_manifest(folder, {"fingerprint": fingerprint, **content, "inputs": inputs, "files": files})
    flush_folder(folder)


# ---- the tokenizer --------------------------------------------------------------------------------------


def _tokenizer(config: DataConfig, workplace: Workplace, say: Say) -> Tokenizer:
    folder, new = workplace.store / "tokenizer", workplace.work / "tokenizer"
    limit = config.tokenizer.train
    if not folder.is_dir():
        shutil.rmtree(new, ignore_errors=True)
        if limit is not None:
            say(f"training a tokenizer of {'at most ' * limit.soft_limit}{limit.vocabulary_size:,} ids")
            in_a_process(_train, config, limit, workplace.work / "cleaning", new)
        else:
            copy_tokenizer(config.tokenizer.path or "", new)
        new.rename(folder)
    tokenizer = Tokenizer.open(folder)
    if limit is not None and tokenizer.vocabulary_size < limit.vocabulary_size:
        say(
            f"learned {tokenizer.vocabulary_size:,} of at most {limit.vocabulary_size:,} ids: these corpora hold no"
            " more pieces"
        )
    return tokenizer


def _train(config: DataConfig, limit: TrainTokenizerConfig, cleaning: Path, folder: Path) -> None:
    """In a process of its own, which takes its memory with it."""
    cleaned = Sieve(config, cleaning)
    train_tokenizer(lambda: _training_sentences(config, cleaned), limit, folder)


def _training_sentences(config: DataConfig, cleaned: Sieve) -> Iterator[tuple[str, str]]:
    for name, corpus in config.corpora.items():
        if not corpus.held_out:
            for item in cleaned.read(name):
                if not isinstance(item, Reject):
                    yield from segments(item[1])


# ---- the corpora ----------------------------------------------------------------------------------------


def _encoded(
    config: DataConfig, cleaned: Sieve, tokenizer: Tokenizer, work: Path, pool: WorkerPool
) -> list[CorpusWriter]:
    """Writers that hold all of their corpora."""
    size = sum(file.stat().st_size for corpus in config.corpora.values() for file in files_of_corpus(corpus))
    writers = []
    with Progress("preparing", size) as progress:
        for name, corpus in config.corpora.items():
            writer = CorpusWriter(work / "corpora", name, corpus.kind, corpus.held_out)
            writers.append(writer)
            if writer.complete:
                progress.skip(sum(file.stat().st_size for file in files_of_corpus(corpus)))
                continue
            items = islice(cleaned.read(name, progress.advance), writer.items, None)
            for rejects, chunk in pool.in_order(
                encode_chunk, _tasks(items, tokenizer, config.maximum_tokens)
            ):
                lost = sorted(rejects + chunk.rejects, key=lambda each: each.where)
                writer.add(chunk, lost, chunk.records + len(rejects))
            if not writer.records:
                reasons = ", ".join(f"{reason} {count}" for reason, count in writer.reasons().items())
                raise UserError(
                    f"corpora.{name}: nothing was kept of {writer.rejected} records ({reasons or 'empty'})"
                )
            writer.close()
    return writers


def _tasks(
    items: Iterator[Item], tokenizer: Tokenizer, maximum_tokens: int
) -> Iterator[tuple[list[Reject], tuple[Any, ...]]]:
    """A corpus cut into chunks: rejects of the source, and the arguments of `encode_chunk`.

    The cuts leave no trace in the store.
    """
    records: list[tuple[Where, Record]] = []
    rejects: list[Reject] = []
    held = characters = 0

    def task() -> tuple[list[Reject], tuple[Any, ...]]:
        return rejects, (records, tokenizer.folder, tokenizer.fingerprint, maximum_tokens)

    for item in items:
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            records.append(item)
            texts = segments(item[1])
            held += len(texts)
            characters += sum(len(text) for _, text in texts)
        if (
            held >= SEGMENTS_PER_CHUNK
            or characters >= CHARACTERS_PER_CHUNK
            or len(rejects) >= REJECTS_PER_CHUNK
        ):
            yield task()
            records, rejects, held, characters = [], [], 0, 0
    yield task()


# ---- what is made of all of them ------------------------------------------------------------------------


def _write_counts_of_ids(
    writers: list[CorpusWriter], languages: tuple[str, ...], width: int, workplace: Workplace
) -> None:
    """How often every id stands in the training texts of every language. Takes 8 bytes of memory for each."""
    counts = np.zeros((len(languages), width), np.int64)
    for writer in writers:
        if not writer.held_out:
            writer.count_ids(counts, languages)
    path = workplace.work / "counts of ids"
    counts.tofile(path)
    with MappedColumns() as mapped:
        mapped.write(workplace.store / IDS, {"count": mapped.numbers(path, pa.int64())})


def _write_tables(writers: list[CorpusWriter], corpora: dict[str, Any], folder: Path) -> None:
    with (folder / REJECTS).open("wb") as listing:
        listing.write(b"corpus\tfile\tline\tbyte\treason\tlanguage\tlost\n")
        for writer in writers:
            with writer.file("rejects").open("rb") as rows:
                shutil.copyfileobj(rows, listing)
    (folder / COUNTS).write_text(as_tsv({"corpora": corpora}), encoding="utf-8")
