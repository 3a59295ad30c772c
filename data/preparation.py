"""Preparation: the corpora of a recipe -> a token store.

Reads every corpus as a stream, tokenises chunks of it in worker processes and writes them in order, so that
the bytes do not depend on the number of workers. The store is built beside its place and renamed when it is
complete; a preparation that was interrupted, at whatever moment, goes on where it was and ends with the same bytes.
A complete store of the same inputs is used as it is.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import tokenizers

from data.build import Say, build
from data.cleaning.config import effective
from data.cleaning.sieve import check_packages
from data.config import DataConfig
from data.inputs import differences, inputs_of
from data.lexicon import read_entries
from data.recipe import UserError
from data.sources.checks import check_corpus
from data.sources.shifts import check_alignment
from data.store import MANIFEST, VERSION, TokenStore, read_manifest
from data.tokenizer import Tokenizer
from data.workers import WorkerEnded, WorkerPool
from data.workplace import Workplace, clear

VERIFIED_ALWAYS = 1 << 30  # bytes of a store whose digests take about a second


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
    if config.tokenizer.path is not None:
        try:
            Tokenizer.open(config.tokenizer.path)
        except UserError as error:
            raise UserError(f"tokenizer.path: {error}") from None
    inputs = inputs_of(config, read_all=verify)
    place = Path(config.store)
    if _already_prepared(place, inputs, rebuild, verify):
        store = TokenStore.open(place)
        clear(place)
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
    made_of = {
        **inputs,
        "store format": VERSION,
        "tokenizers": tokenizers.__version__,
        "pyarrow": pyarrow.__version__,
    }
    with Workplace(place, made_of, anew=rebuild, say=say) as workplace:
        try:
            if not workplace.finished:
                with WorkerPool(workers) as pool:
                    build(config, inputs, workplace, pool, say)
            changed = differences(inputs, inputs_of(config))
            if changed:
                raise UserError(
                    "\n  ".join(["what the store is made of changed meanwhile; start again", *changed])
                )
            workplace.move_into_place()
        except OSError as error:
            raise UserError(
                f"{place}: the token store could not be written: {error}; what was done is kept in {workplace.folder}:"
                " mend this and give the same command again, or remove the folder"
            ) from error
        except WorkerEnded:
            raise
        except UserError:  # it would go the same way again
            workplace.discard()
            raise
    say(f"{place}: prepared in {time.monotonic() - started:.1f} s")
    return TokenStore.open(place)


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


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
