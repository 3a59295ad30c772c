"""Reading corpora as the recipe wants them cleaned.

What a record alone decides (its Unicode form, lengths) is done whenever it is read. For the rest all corpora are read
once beforehand: held-out ones first, of which the numbers of their texts are kept in memory, then the others in the
order of the recipe. What was found is written down as one byte a text and one a record, and read beside the corpora
from then on. Of records that repeat each other the first is kept.

    corpora ─▶ tidied ─┬─▶ chunks ─▶ examine (workers) ─▶ held out?  seen before? ─▶ a byte a text, a byte a record
                       └──────────────────────────── the same records again ◀──────────────────┘ ─▶ cleaned
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.cleaning.config import CleaningConfig, LanguageRule, effective
from data.cleaning.examine import Examined, Texts, examine
from data.cleaning.language import identifier
from data.cleaning.repeats import Repeats
from data.cleaning.signatures import library
from data.cleaning.texts import language_of, tidied, without
from data.config import DataConfig
from data.progress import Progress
from data.recipe import UserError
from data.records import segments
from data.sources import Advance, Item, Reject, files_of_corpus, read_corpus
from data.workers import WorkerPool

REASONS_BY_NUMBER = ("", "wrong_language", "held_out_text", "near_held_out", "duplicate", "near_duplicate")
NUMBERS = {reason: number for number, reason in enumerate(REASONS_BY_NUMBER)}
TEXTS_PER_CHUNK = 4096
FEWEST_JUDGED = 100  # texts of a language, before its corpus is refused for them


class Sieve:
    """The corpora of a recipe, cleaned; ``folder`` holds what was found beforehand, for those that asked for it."""

    def __init__(self, config: DataConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self.rules = {
            name: effective(config.cleaning, corpus.cleaning, corpus.held_out)
            for name, corpus in config.corpora.items()
        }
        self.examined = tuple(
            name for name, rules in self.rules.items() if rules.language or rules.duplicates or rules.held_out
        )
        self.compared = {
            rules.held_out for rules in self.rules.values() if rules.held_out
        }  # with what is held out

    def read(self, name: str, advance: Advance = lambda count: None) -> Iterator[Item]:
        """The records of a corpus that are kept, and what is not in its place."""
        if name not in self.examined:
            yield from self.tidied(name, advance)
            return
        with (
            (self._folder / f"{name}.texts").open("rb") as texts,
            (self._folder / f"{name}.records").open("rb") as records,
        ):
            for item in self.tidied(name, advance):
                if isinstance(item, Reject):
                    yield item
                    continue
                where, record = item
                size = len(segments(record))
                marks, mark = texts.read(size), records.read(1)
                if len(marks) < size or not mark:
                    raise UserError(f"{where.file}: has changed while it was read; start again")
                if mark[0]:
                    yield Reject(where, REASONS_BY_NUMBER[mark[0]], language_of(record))
                else:
                    yield from without(where, record, [REASONS_BY_NUMBER[each] for each in marks])

    def tidied(self, name: str, advance: Advance = lambda count: None) -> Iterator[Item]:
        """The records of a corpus before they are compared with others."""
        items = read_corpus(self._config.corpora[name], self._config.maximum_characters, advance)
        return tidied(items, self.rules[name])

    def bytes_to_examine(self) -> int:
        """The size of what `examine_all` reads."""
        held_out = [
            name for name, corpus in self._config.corpora.items() if corpus.held_out and self.compared
        ]
        return sum(
            file.stat().st_size
            for name in (*held_out, *self.examined)
            for file in files_of_corpus(self._config.corpora[name])
        )

    def examine_all(self, pool: WorkerPool, advance: Advance) -> None:
        """Find what is to be left out, once, before `read`."""
        self._folder.mkdir()
        held_out = self._held_out(pool, advance)
        seen, near = Repeats(self._folder / "seen"), Repeats(self._folder / "near")
        starts, records = [], 0
        for name in self.examined:
            starts.append(records)
            rules = self.rules[name]
            found: Counter[tuple[str, str]] = Counter()
            with (
                (self._folder / f"{name}.texts").open("wb") as texts,
                (self._folder / f"{name}.records").open("wb") as empty,
            ):
                for count, chunk in pool.in_order(examine, self._chunks(name, rules, advance)):
                    marks = held_out.marks(chunk, rules)
                    texts.write(marks.tobytes())
                    empty.write(bytes(count))
                    places = np.arange(records, records + count, dtype=np.uint64)
                    kept = _still_records(chunk.sizes, marks, self._config.corpora[name].kind == "parallel")
                    if chunk.records is not None:
                        seen.add(chunk.records[kept], places[kept])
                    if chunk.record_bands is not None:
                        bands = chunk.record_bands[kept]
                        near.add(bands.ravel(), np.repeat(places[kept], bands.shape[1]))
                    records += count
                    found.update(chunk.found)
            _check_languages(name, found, rules)
        self._mark("near_duplicate", near, starts)
        self._mark("duplicate", seen, starts)  # last: an equal record is a near one too

    def _held_out(self, pool: WorkerPool, advance: Advance) -> _HeldOut:
        texts, bands = [], []
        how = CleaningConfig(held_out="near" if "near" in self.compared else "exact")
        for name, corpus in self._config.corpora.items():
            if corpus.held_out and self.compared:
                for _, chunk in pool.in_order(examine, self._chunks(name, how, advance)):
                    texts += [] if chunk.texts is None else [np.unique(chunk.texts)]
                    bands += [] if chunk.text_bands is None else [np.unique(chunk.text_bands)]
        return _HeldOut(texts, bands)

    def _chunks(
        self, name: str, rules: CleaningConfig, advance: Advance
    ) -> Iterator[tuple[int, tuple[list[Texts], CleaningConfig]]]:
        """Records of a corpus and their number, with the arguments of `examine`."""
        chunk: list[Texts] = []
        held = 0
        for item in self.tidied(name, advance):
            if not isinstance(item, Reject):
                chunk.append(segments(item[1]))
                held += len(chunk[-1])
                if held >= TEXTS_PER_CHUNK:
                    yield len(chunk), (chunk, rules)
                    chunk, held = [], 0
        yield len(chunk), (chunk, rules)

    def _mark(self, reason: str, repeats: Repeats, starts: list[int]) -> None:
        """Write down which records repeat earlier ones."""
        for places in repeats.places():
            places = places.astype(np.int64)
            owners = np.searchsorted(starts, places, side="right") - 1
            for owner in np.unique(owners).tolist():
                marks = np.memmap(self._folder / f"{self.examined[owner]}.records", np.uint8, "r+")
                marks[places[owners == owner] - starts[owner]] = NUMBERS[reason]


class _HeldOut:
    """The numbers of all texts that are held out: 8 bytes a text, and 112 more where near ones are looked for."""

    def __init__(self, texts: list[np.ndarray], bands: list[np.ndarray]) -> None:
        self._texts, self._bands = (
            np.unique(np.concatenate(arrays)) if arrays else np.empty(0, np.uint64)
            for arrays in (texts, bands)
        )

    def marks(self, chunk: Examined, rules: CleaningConfig) -> np.ndarray:
        """(S,) uint8: why each text is not to be kept, or 0."""
        marks = np.zeros(len(chunk.wrong_language), np.uint8)
        if chunk.text_bands is not None:
            marks[_among(chunk.text_bands, self._bands).any(1)] = NUMBERS["near_held_out"]
        if chunk.texts is not None:
            marks[_among(chunk.texts, self._texts)] = NUMBERS["held_out_text"]
        marks[chunk.wrong_language & (marks == 0)] = NUMBERS["wrong_language"]
        return marks


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which values are in a sorted array."""
    if not len(ascending):
        return np.zeros(values.shape, bool)
    places = np.searchsorted(ascending, values)
    return ascending[np.minimum(places, len(ascending) - 1)] == values


def _still_records(sizes: np.ndarray, marks: np.ndarray, parallel: bool) -> np.ndarray:
    """(R,) bool: which records are left when the marked texts are gone."""
    if not len(sizes):
        return np.zeros(0, bool)
    good = np.add.reduceat(marks == 0, np.cumsum(sizes) - sizes, dtype=np.int64)
    return good >= 2 if parallel else good == sizes


def _check_languages(name: str, found: Counter[tuple[str, str]], rules: CleaningConfig) -> None:
    """UserError if most of a language's texts are in another: then labels or columns are wrong, not single texts."""
    if not isinstance(rules.language, LanguageRule):
        return
    for language in sorted({language for language, _ in found}):
        of_it = Counter({other: count for (own, other), count in found.items() if own == language})
        wrong = of_it.total() - of_it[""]
        if of_it.total() >= FEWEST_JUDGED and wrong > rules.language.maximum_wrong * of_it.total():
            del of_it[""]
            usual = of_it.most_common(1)[0][0]
            raise UserError(
                f"corpora.{name}: {100 * wrong // (wrong + found[language, ''])} % of its texts in '{language}' are in"
                f" another language, most of them in '{usual}'; look whether languages or columns are interchanged, or"
                " raise cleaning.language.maximum_wrong for this corpus"
            )


def check_packages(config: DataConfig) -> None:
    """UserError if the recipe asks for what an optional package does that is not installed."""
    for rules in Sieve(config, Path()).rules.values():
        if rules.language:
            identifier()
        if "near" in (rules.duplicates, rules.held_out):
            library()


def open_sieve(config: DataConfig, folder: Path, pool: WorkerPool) -> Sieve:
    """The corpora of a recipe, ready to be read; ``folder`` is made if there is anything to be found beforehand."""
    sieve = Sieve(config, folder)
    if sieve.examined:
        with Progress("cleaning", sieve.bytes_to_examine()) as progress:
            sieve.examine_all(pool, progress.advance)
    return sieve
