"""Finding what is to be left out of the corpora: once, before they are read for good.

All corpora are read: held-out ones first, of which the numbers of their texts are kept in memory, then the others in
the order of the recipe. What was found is written down as one byte a text and one a record. Of records that repeat each
other the first is kept.

    corpora ─▶ tidied ─▶ chunks ─▶ examine (workers) ─▶ held out?  seen before? ─▶ a byte a text, a byte a record

An examination that was interrupted goes on from its last note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from data.cleaning.config import CleaningConfig, LanguageRule
from data.cleaning.examine import Examined, Texts, examine
from data.cleaning.repeats import Repeats
from data.cleaning.sieve import NUMBERS, Sieve
from data.config import DataConfig
from data.journal import Journal
from data.parts import MOST_BITS, ROWS_OF_A_PART, Parts
from data.progress import Progress
from data.recipe import UserError
from data.records import segments
from data.sources import Advance, Reject, files_of_corpus
from data.spool import Spool
from data.workers import WorkerPool

TEXTS_PER_CHUNK = 4096
CHARACTERS_PER_CHUNK = 1 << 20
FEWEST_JUDGED = 100  # texts of a language, before its corpus is refused for them
_MARK = np.dtype([("place", np.int64), ("number", np.uint8)])


def open_sieve(config: DataConfig, folder: Path, pool: WorkerPool) -> Sieve:
    """The corpora of a recipe, ready to be read; ``folder`` is made if there is anything to be found beforehand."""
    sieve = Sieve(config, folder)
    if sieve.examined and not Journal(folder / "journal.json").state.get("done"):
        with Progress("cleaning", _bytes_to_examine(config, sieve)) as progress:
            _Examination(config, sieve, folder).run(pool, progress.advance)
    return sieve


def _bytes_to_examine(config: DataConfig, sieve: Sieve) -> int:
    held_out = [name for name, corpus in config.corpora.items() if corpus.held_out and sieve.compared]
    return sum(
        file.stat().st_size
        for name in (*held_out, *sieve.examined)
        for file in files_of_corpus(config.corpora[name])
    )


class _Examination:
    """Works in a folder: ``marks`` holds the bytes of texts, ``seen`` and ``near`` what records repeat."""

    def __init__(self, config: DataConfig, sieve: Sieve, folder: Path) -> None:
        self._config, self._sieve, self._folder = config, sieve, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(folder / "journal.json")
        state = self._journal.state
        self._records: dict[str, int] = state.get("records", {})  # that were examined, of each corpus
        self._read: list[str] = state.get("read", [])  # to the end
        self._found = {
            name: Counter({(own, other): count for own, other, count in rows})
            for name, rows in state.get("found", {}).items()
        }
        self._texts = Spool(folder / "texts", state.get("texts"))
        self._seen = Repeats(folder / "seen", state.get("seen"))
        self._near = Repeats(folder / "near", state.get("near"))

    def run(self, pool: WorkerPool, advance: Advance) -> None:
        """Find what is to be left out, from where an earlier process was."""
        held_out = _held_out(self._config, self._sieve, pool, advance)
        for name in self._sieve.examined:
            if name not in self._read:
                self._examine(name, held_out, pool, advance)
        self._mark_repeats()
        self._journal.note({"done": True})
        self._seen.remove()
        self._near.remove()

    def _examine(self, name: str, held_out: _HeldOut, pool: WorkerPool, advance: Advance) -> None:
        rules = self._sieve.rules[name]
        parallel = self._config.corpora[name].kind == "parallel"
        before = sum(count for other, count in self._records.items() if other != name)
        done, found = self._records.get(name, 0), self._found.setdefault(name, Counter())
        for count, chunk in pool.in_order(examine, _chunks(self._sieve, name, rules, advance, done)):
            marks = held_out.marks(chunk, rules)
            self._texts.append(name, marks)
            places = np.arange(before + done, before + done + count, dtype=np.int64)
            kept = _still_records(chunk.sizes, marks, parallel)
            if chunk.records is not None:
                self._seen.add(chunk.records[kept], places[kept])
            if chunk.record_bands is not None:
                bands = chunk.record_bands[kept]
                self._near.add(bands.ravel(), np.repeat(places[kept], bands.shape[1]))
            done += count
            found.update(chunk.found)
            self._records[name] = done
            if self._journal.due:
                self._note()
        _check_languages(name, found, rules)
        self._read.append(name)

    def _note(self) -> None:
        self._journal.note(
            {
                "records": self._records,
                "read": self._read,
                "found": {
                    name: [[own, other, count] for (own, other), count in found.items()]
                    for name, found in self._found.items()
                },
                "texts": self._texts.sizes(),
                "seen": self._seen.sizes(),
                "near": self._near.sizes(),
            }
        )

    def _mark_repeats(self) -> None:
        """Write down which records repeat earlier ones: a stretch of them at a time."""
        stretch = max(ROWS_OF_A_PART, -(-sum(self._records.values()) // 2**MOST_BITS))
        marks = Parts(self._folder / "repeats", _MARK)
        # exact ones last: an equal record is a near one too
        for reason, repeats in (("near_duplicate", self._near), ("duplicate", self._seen)):
            for places in repeats.places():
                rows = np.empty(len(places), _MARK)
                rows["place"], rows["number"] = places, NUMBERS[reason]
                marks.deal((places // stretch).astype(np.uint8), rows)
        records = Spool(self._folder / "records")
        first = 0
        for name in self._sieve.examined:
            last = first + self._records[name]
            for number in range(first // stretch, last // stretch + 1):
                start, end = max(first, number * stretch), min(last, (number + 1) * stretch)
                found = np.zeros(end - start, np.uint8)
                for rows in marks.rows(number):
                    rows = rows[(rows["place"] >= start) & (rows["place"] < end)]
                    found[rows["place"] - start] = rows["number"]
                records.append(name, found)
            first = last
        records.sizes()
        marks.remove()


def _chunks(
    sieve: Sieve, name: str, rules: CleaningConfig, advance: Advance, skipped: int = 0
) -> Iterator[tuple[int, tuple[list[Texts], CleaningConfig]]]:
    """Records of a corpus, but for the first ones, and their number, with the arguments of `examine`."""
    chunk: list[Texts] = []
    texts = characters = 0
    records = (item for item in sieve.tidied(name, advance) if not isinstance(item, Reject))
    for _, record in islice(records, skipped, None):
        chunk.append(segments(record))
        texts += len(chunk[-1])
        characters += sum(len(text) for _, text in chunk[-1])
        if texts >= TEXTS_PER_CHUNK or characters >= CHARACTERS_PER_CHUNK:
            yield len(chunk), (chunk, rules)
            chunk, texts, characters = [], 0, 0
    yield len(chunk), (chunk, rules)


def _held_out(config: DataConfig, sieve: Sieve, pool: WorkerPool, advance: Advance) -> _HeldOut:
    texts, bands = [], []
    how = CleaningConfig(held_out="near" if "near" in sieve.compared else "exact")
    for name, corpus in config.corpora.items():
        if corpus.held_out and sieve.compared:
            for _, chunk in pool.in_order(examine, _chunks(sieve, name, how, advance)):
                texts += [] if chunk.texts is None else [np.unique(chunk.texts)]
                bands += [] if chunk.text_bands is None else [np.unique(chunk.text_bands)]
    return _HeldOut(texts, bands)


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
