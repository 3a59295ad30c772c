"""Command: the corpora of a recipe -> a token store.

    python -m data.prepare --recipe RECIPE [--set a.b=c ...] [--workers N] [--rebuild] [--verify]

Reads every corpus as a stream, tokenises chunks of it in worker processes and writes them in order, so that
the bytes do not depend on the number of workers. The store is built beside its place and renamed when it is
complete. A complete store of the same inputs is used as it is.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.cleaning.config import effective
from data.cleaning.sieve import Sieve, check_packages, open_sieve
from data.command import data_config, recipe_parser, run
from data.config import DataConfig
from data.counts import as_tsv, summary
from data.encode import encode_chunk
from data.groups import number_groups
from data.lexicon import read_entries
from data.progress import Progress
from data.recipe import UserError
from data.records import Record, segments
from data.sources import Item, Reject, Where, files_of, files_of_corpus
from data.sources.checks import check_corpus
from data.sources.shifts import check_alignment
from data.store import MANIFEST, TokenStore, digest_of_values, read_manifest, sha256_of, write_manifest
from data.store_writer import CorpusWriter
from data.tokenizer import Tokenizer, copy_tokenizer, train_tokenizer
from data.workers import WorkerPool

COUNTS = "counts.tsv"
SEGMENTS_PER_CHUNK = 4096
REJECTS_PER_CHUNK = 8192
VERIFIED_ALWAYS = 1 << 30  # bytes of a store whose digests take about a second
Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = recipe_parser("data.prepare", "Build the token store of a recipe.")
    parser.add_argument(
        "--workers", type=int, default=None, help="worker processes (default: one a core, up to 8)"
    )
    parser.add_argument(
        "--rebuild", action="store_true", help="replace a store that was made from other inputs"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read a store that is there already and compare every digest"
    )
    given = parser.parse_args(arguments)

    def work() -> str:
        config = data_config(given)
        store = prepare(config, workers=given.workers, rebuild=given.rebuild, verify=given.verify)
        return summary(store.manifest)

    return run(work, "nothing was changed")


def prepare(
    config: DataConfig,
    *,
    workers: int | None = None,
    rebuild: bool = False,
    verify: bool = False,
    say: Say | None = None,
) -> TokenStore:
    """The token store of `config`, built if it is not there yet.

    Of one that is there sizes are always compared, and every digest where that takes a moment or `verify` asks for
    it. UserError if a corpus can not be read, if the store is damaged, or if the folder holds a store of other inputs
    and not `rebuild`.
    """
    say = say or _say
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    if workers < 1:
        raise UserError(f"--workers {workers}: at least one worker is needed")
    for name, corpus in config.corpora.items():
        check_corpus(corpus, f"corpora.{name}")
    inputs = inputs_of(config)
    place = Path(config.store)
    if _already_prepared(place, inputs, rebuild, verify):
        store = TokenStore.open(place)
        say(f"{place}: already prepared ({store.fingerprint[:12]}{', every digest compared' * verify})")
        return store
    check_packages(config)
    for name, corpus in config.corpora.items():
        if effective(config.cleaning, corpus.cleaning, corpus.held_out).alignment != "off":
            check_alignment(corpus, f"corpora.{name}")
    for lexicon in config.lexicons:  # training reads them; a fault in one is said before the work
        for _ in read_entries(Path(lexicon.path)):
            pass
    started = time.monotonic()
    partial = _folder_beside(place, say)
    try:
        with WorkerPool(workers) as pool:
            _build(config, inputs, partial, pool, say)
        _move_into_place(partial, place)
    except OSError as error:
        raise UserError(f"{place}: the token store could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{place}: prepared in {time.monotonic() - started:.1f} s")
    return TokenStore.open(place)


def inputs_of(config: DataConfig) -> dict[str, Any]:
    """Everything that decides what is in a store: settings, and digests of all files that are read."""
    settings = config.model_dump(mode="json", include=set(DataConfig.model_fields) - {"store"})
    paths = [path for corpus in config.corpora.values() for path in corpus.files()]
    if config.tokenizer.path is not None:
        try:
            Tokenizer.open(config.tokenizer.path)
        except UserError as error:
            raise UserError(f"tokenizer.path: {error}") from None
        paths.append(str(Path(config.tokenizer.path) / "tokenizer.json"))
    for lexicon in config.lexicons:
        if not Path(lexicon.path).is_file():
            raise UserError(f"lexicons: there is no file {lexicon.path}")
        paths.append(lexicon.path)
    files = sorted({file for path in paths for file in files_of(path)})
    return {"settings": settings, "files": {str(file): sha256_of(file) for file in files}}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between the inputs of two stores, or between the settings of two runs, one line a leaf."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        found = [differences(old.get(key), new.get(key), f"{path}/{key}" if path else key) for key in keys]
        return [line for lines in found for line in lines]
    if old == new:
        return []
    path = path.removeprefix("settings/")
    if path.startswith("files/"):
        name = path.removeprefix("files/")
        return [
            f"{name}: " + ("was not used" if old is None else "is not used" if new is None else "has changed")
        ]
    return [f"{path.replace('/', '.')}: was {_short(old)}, is {_short(new)}"]


# ---- building -------------------------------------------------------------------------------------------


def _build(config: DataConfig, inputs: dict[str, Any], folder: Path, pool: WorkerPool, say: Say) -> None:
    cleaned = open_sieve(config, folder / "cleaning", pool)
    tokenizer_folder = folder / "tokenizer"
    if config.tokenizer.train is not None:
        limit = config.tokenizer.train
        say(f"training a tokenizer of {'at most ' * limit.soft_limit}{limit.vocabulary_size:,} ids")
        train_tokenizer(lambda: _training_sentences(config, cleaned), limit, tokenizer_folder)
    else:
        copy_tokenizer(config.tokenizer.path or "", tokenizer_folder)
    tokenizer = Tokenizer.open(tokenizer_folder)
    if (
        config.tokenizer.train is not None
        and tokenizer.vocabulary_size < config.tokenizer.train.vocabulary_size
    ):
        say(
            f"learned {tokenizer.vocabulary_size:,} of at most {config.tokenizer.train.vocabulary_size:,} ids: these"
            " corpora hold no more pieces"
        )
    size = sum(file.stat().st_size for corpus in config.corpora.values() for file in files_of_corpus(corpus))
    writers = []
    with (
        Progress("preparing", size) as progress,
        (folder / "rejects.tsv").open("w", encoding="utf-8") as listing,
    ):
        listing.write("corpus\tfile\tline\treason\tlanguage\tlost\n")
        for name, corpus in config.corpora.items():
            writer = CorpusWriter(folder, name, corpus.kind, corpus.held_out)
            writers.append(writer)
            tasks = _tasks(cleaned.read(name, progress.advance), tokenizer_folder, config.maximum_tokens)
            for rejects, chunk in pool.in_order(encode_chunk, tasks):
                writer.add(chunk)
                for reject in sorted(rejects + chunk.rejects, key=lambda each: each.where):
                    writer.reject(reject)
                    listing.write(_row(name, reject))
            if not writer.records:
                reasons = ", ".join(f"{reason} {count}" for reason, count in writer.reasons().items())
                raise UserError(
                    f"corpora.{name}: nothing was kept of {writer.rejected} records ({reasons or 'empty'})"
                )
    number_groups(*zip(*(writer.texts() for writer in writers), strict=True))
    languages = tuple(sorted({language for writer in writers for language in writer.languages}))
    corpora = {writer.name: writer.finish(languages) for writer in writers}
    shutil.rmtree(folder / "cleaning", ignore_errors=True)
    (folder / COUNTS).write_text(as_tsv({"corpora": corpora}), encoding="utf-8")
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names
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
        "lexicons": [
            sha256_of(Path(lexicon.path)) for lexicon in config.lexicons
        ],  # mixed texts are made of them
    }
    rows = {name: file["sha256"] for name, file in files.items() if name.endswith(".arrow")}
    fingerprint = digest_of_values({"content": content, "files": rows})
    write_manifest(folder, {"fingerprint": fingerprint, **content, "inputs": inputs, "files": files})
    _flush(folder)


def _training_sentences(config: DataConfig, cleaned: Sieve) -> Iterator[tuple[str, str]]:
    for name, corpus in config.corpora.items():
        if not corpus.held_out:
            for item in cleaned.read(name):
                if not isinstance(item, Reject):
                    yield from segments(item[1])


def _tasks(
    items: Iterator[Item], tokenizer_folder: Path, maximum_tokens: int
) -> Iterator[tuple[list[Reject], tuple[Any, ...]]]:
    """A corpus cut into chunks: rejects of the source, and the arguments of `encode_chunk`.

    Where the cuts lie depends on the corpus alone.
    """
    records: list[tuple[Where, Record]] = []
    rejects: list[Reject] = []
    held = 0
    for item in items:
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            records.append(item)
            held += len(segments(item[1]))
        if held >= SEGMENTS_PER_CHUNK or len(rejects) >= REJECTS_PER_CHUNK:
            yield rejects, (records, tokenizer_folder, maximum_tokens)
            records, rejects, held = [], [], 0
    yield rejects, (records, tokenizer_folder, maximum_tokens)


# ---- the store's folder ---------------------------------------------------------------------------------


def _already_prepared(place: Path, inputs: dict[str, Any], rebuild: bool, verify: bool) -> bool:
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return False
    if not (place / MANIFEST).is_file():
        raise UserError(f"{place}: exists and is not a token store; name another folder (--set store=FOLDER)")
    try:
        different = differences(read_manifest(place)["inputs"], inputs)
        if not different:
            store = TokenStore.open(place)
            if verify or rebuild or store.bytes <= VERIFIED_ALWAYS:
                store.verify()
            return True
    except UserError:
        if rebuild:
            return False
        raise
    if rebuild:
        return False
    raise UserError(
        "\n  ".join([f"{place}: holds a token store of other inputs", *different])
        + "\nReplace it with: python -m data.prepare --recipe RECIPE --rebuild"
        + "\nor keep both, with another folder: --set store=FOLDER"
    )


def _folder_beside(place: Path, say: Say) -> Path:
    """A new folder to build in, on the same disk."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in sorted(place.parent.glob(f"{place.name}.partial-*")):
            say(f"{left}: left over from an interrupted preparation; it can be removed")
        return Path(tempfile.mkdtemp(prefix=f"{place.name}.partial-", dir=place.parent))
    except OSError as error:
        raise UserError(
            f"store: no folder can be made at {place}: {error}; name another one (--set store=FOLDER)"
        ) from None


def _move_into_place(partial: Path, place: Path) -> None:
    partial.chmod(0o755)  # mkdtemp's are closed to others
    old = None
    if place.exists():
        old = Path(tempfile.mkdtemp(prefix=f"{place.name}.old-", dir=place.parent))
        place.rename(old / place.name)
    partial.rename(place)
    if old is not None:
        shutil.rmtree(old)


def _flush(folder: Path) -> None:
    """To the disk, before the rename makes it a store."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _row(corpus: str, reject: Reject) -> str:
    file = reject.file.replace("\t", " ").replace("\n", " ")
    lost = "record" if reject.whole_record else "text"
    return f"{corpus}\t{file}\t{reject.line}\t{reject.reason}\t{reject.language}\t{lost}\n"


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
