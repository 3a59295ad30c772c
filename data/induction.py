"""Lexicon induction: word and phrase translations out of the user's own bitext.

    translations of the training corpora, each language with English
      ──▶ words ──▶ word alignment ──▶ phrases that all links agree on ──▶ counts, thresholds ──▶ a word list (TSV)

Words are those of data/lexicon.py, so that what is induced is found again. Languages without spaces are cut into
pieces by a unigram model of their own texts (data/tokenizer_training.py); up to three pieces together may be a word.
"""

from __future__ import annotations

import gzip
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from data.cleaning.examination import open_sieve
from data.cleaning.sieve import Sieve, check_packages
from data.config import DataConfig
from data.languages import PIVOT, primary, written_without_spaces
from data.lexicon import LONGEST_PHRASE, PHRASE
from data.progress import Progress
from data.recipe import UserError
from data.records import TranslationPair
from data.sources import Reject, files_of_corpus
from data.sources.checks import check_corpus
from data.tokenizer_training import learn_pieces
from data.units import runs_of, units_of
from data.word_alignment import PASSES, Sentences, aligned, consistent_phrases
from data.workers import WorkerPool

LONGEST_SENTENCE = 100  # words; longer ones are mostly two texts that stand side by side
PIECES_OF_A_WORD = 3
FEWEST_PAIRS = 50  # sentence pairs below which a language is left out: nothing would be learned
Span = tuple[int, int]


class Thresholds(NamedTuple):
    """What an entry must reach."""

    words: int = 2  # sentence pairs in which a word and its translation are linked
    phrases: int = 3
    share: float = 0.15  # of the links of both sides that go to each other, at least
    best: int = 3  # translations that are kept of an English word or phrase


THRESHOLDS = Thresholds()


class Induced(NamedTuple):
    """A line of the word list."""

    english: str
    translation: str
    kind: str  # word or phrase
    seen: int  # sentence pairs in which the two are linked
    share: float  # the smaller of p(translation | english) and p(english | translation)


class _Text(NamedTuple):
    """The words of one side of a sentence pair."""

    words: list[int]
    spans: list[Span]
    text: str

    def joined(self, start: int, end: int, gap: str) -> bool:
        """Whether words ``start`` to ``end`` stand together, nothing but ``gap`` between them."""
        between = zip(self.spans[start : end - 1], self.spans[start + 1 : end], strict=True)
        return all(self.text[one[1] : other[0]] == gap for one, other in between)


class _Vocabulary:
    """Numbers for the words of one language, and how each is usually written."""

    def __init__(self, cut: Callable[[str], list[Span]], gap: str) -> None:
        self.cut, self.gap = cut, gap
        self._numbers: dict[str, int] = {}
        self._written: list[Counter[str]] = []  # inside sentences
        self._first: list[Counter[str]] = []  # at their beginning, where capitals say nothing

    def read(self, text: str) -> _Text:
        spans = self.cut(text)
        words = []
        for place, (start, end) in enumerate(spans):
            written = text[start:end]
            number = self._numbers.setdefault(written.casefold(), len(self._numbers))
            if number == len(self._written):
                self._written.append(Counter())
                self._first.append(Counter())
            (self._written if place else self._first)[number][written] += 1
            words.append(number)
        return _Text(words, spans, text)

    def spelled(self, words: Sequence[int]) -> str:
        """The words as they are mostly written inside a sentence."""
        return self.gap.join(self._spelling(word) for word in words)

    def _spelling(self, word: int) -> str:
        if self._written[word]:
            return max(self._written[word].items(), key=lambda item: (item[1], item[0]))[0]
        written = max(self._first[word].items(), key=lambda item: (item[1], item[0]))[0]
        return written if written[1:] != written[1:].lower() else written.lower()


def induce(
    pairs: Sequence[tuple[str, str]],
    language: str,
    thresholds: Thresholds = THRESHOLDS,
    advance: Callable[[int], None] = lambda pairs: None,
) -> list[Induced]:
    """The word and phrase translations in ``pairs`` of an English text and its translation, the surest first.

    ``advance`` is told the sentence pairs done; each is done PASSES times.
    """
    english = _Vocabulary(lambda text: units_of(PIVOT, text), " ")
    other = _Vocabulary(_cutter(language, [text for _, text in pairs]), _gap(language))
    texts = [(english.read(one), other.read(two)) for one, two in pairs]
    texts = [pair for pair in texts if all(0 < len(side.words) <= LONGEST_SENTENCE for side in pair)]
    advance(PASSES * (len(pairs) - len(texts)))
    one, two = (Sentences.of([pair[side].words for pair in texts]) for side in (0, 1))
    counts: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for (left, right), links in zip(texts, aligned(one, two, advance), strict=True):
        counts.update(set(_phrases(left, right, links, english.gap, other.gap)))
    return _kept(counts, english, other, thresholds, 1 if other.gap else PIECES_OF_A_WORD)


def _phrases(
    left: _Text, right: _Text, links: np.ndarray, left_gap: str, right_gap: str
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    lengths = len(left.words), len(right.words)
    longest = LONGEST_PHRASE, LONGEST_PHRASE if right_gap else PIECES_OF_A_WORD * LONGEST_PHRASE
    for a, b, c, d in consistent_phrases(links, lengths, longest):
        if left.joined(a, b, left_gap) and right.joined(c, d, right_gap):
            yield tuple(left.words[a:b]), tuple(right.words[c:d])


def _kept(
    counts: Counter[tuple[tuple[int, ...], tuple[int, ...]]],
    english: _Vocabulary,
    other: _Vocabulary,
    thresholds: Thresholds,
    longest_word: int,
) -> list[Induced]:
    of_english: Counter[tuple[int, ...]] = Counter()
    of_other: Counter[tuple[int, ...]] = Counter()
    for (one, two), count in counts.items():
        of_english[one] += count
        of_other[two] += count
    found: dict[tuple[int, ...], list[Induced]] = defaultdict(list)
    for (one, two), count in counts.items():
        share = count / max(of_english[one], of_other[two])
        is_word = len(one) == 1 and len(two) <= longest_word
        if len(one) == 1 and not is_word:
            continue
        if count < (thresholds.words if is_word else thresholds.phrases) or share < thresholds.share:
            continue
        entry = Induced(english.spelled(one), other.spelled(two), "word" if is_word else PHRASE, count, share)
        if _says_something(entry):
            found[one].append(entry)
    best = [entry for entries in found.values() for entry in sorted(entries, key=_surest)[: thresholds.best]]
    return sorted(best, key=_surest)


def _surest(entry: Induced) -> tuple[float, int, str, str]:
    return -entry.share, -entry.seen, entry.english, entry.translation


def _says_something(entry: Induced) -> bool:
    letters = all(any(c.isalpha() for c in side) for side in (entry.english, entry.translation))
    return letters and entry.english.casefold() != entry.translation.casefold()


def _gap(language: str) -> str:
    return "" if written_without_spaces(language) else " "


def _cutter(language: str, texts: Sequence[str]) -> Callable[[str], list[Span]]:
    """Where the words of a text stand: by spaces, or by pieces where there are none."""
    if not written_without_spaces(language):
        return lambda text: units_of(language, text)
    pieces_of = learn_pieces(run for text in texts for run in (text[a:b] for a, b in runs_of(text)))

    def cut(text: str) -> list[Span]:
        spans = []
        for start, end in runs_of(text):
            if text[start:end].isascii():
                spans.append((start, end))
                continue
            for piece in pieces_of(text[start:end]):
                spans.append((start, start + len(piece)))
                start += len(piece)
        return spans

    return cut


# ---- the command ----------------------------------------------------------------------------------------


def pairs_with_english(
    config: DataConfig, cleaned: Sieve, most: int, advance: Callable[[int], None]
) -> dict[str, list[tuple[str, str]]]:
    """language -> (English, translation) of the parallel corpora that are not held out.

    At most ``most`` of each language: where there are more, they are drawn evenly (reservoir sampling), the same
    ones at every run.
    """
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    seen: Counter[str] = Counter()
    random = Random(1)
    for name, corpus in config.corpora.items():
        if corpus.held_out or corpus.kind != "parallel":
            continue
        for item in cleaned.read(name, advance):
            if isinstance(item, Reject) or not isinstance(item[1], TranslationPair):
                continue
            texts = item[1].texts
            for english in (text for language, text in texts if primary(language) == PIVOT):
                for language, text in texts:
                    if primary(language) == PIVOT:
                        continue
                    seen[language] += 1
                    if len(pairs[language]) < most:
                        pairs[language].append((english, text))
                    elif (place := random.randrange(seen[language])) < most:
                        pairs[language][place] = (english, text)
    return dict(sorted(pairs.items()))


def induce_from(config: DataConfig, out: Path, most: int) -> str:
    """Write the word list of a recipe's training corpora to ``out``; returns a table of what was found."""
    parallel = {
        name: corpus
        for name, corpus in config.corpora.items()
        if corpus.kind == "parallel" and not corpus.held_out
    }
    for name, corpus in parallel.items():
        check_corpus(corpus, f"corpora.{name}")
    check_packages(config)
    size = sum(file.stat().st_size for corpus in parallel.values() for file in files_of_corpus(corpus))
    with tempfile.TemporaryDirectory() as folder, WorkerPool(1) as pool:
        cleaned = open_sieve(config, Path(folder) / "cleaning", pool)
        with Progress("reading", size) as progress:
            pairs = pairs_with_english(config, cleaned, most, progress.advance)
    enough = {language: found for language, found in pairs.items() if len(found) >= FEWEST_PAIRS}
    if not enough:
        raise UserError(
            f"no language has {FEWEST_PAIRS} translations with English in a parallel corpus that is not held out:"
            " there is nothing to learn words from. Add such a corpus, or name a word list under 'lexicons'."
        )
    lines = []
    table = [f"{'language':<12}{'sentence pairs':>16}{'words':>10}{'phrases':>10}"]
    with Progress("aligning", PASSES * sum(map(len, enough.values())), unit=" pairs") as progress:
        for language, found in pairs.items():
            entries = induce(found, language, advance=progress.advance) if language in enough else []
            lines += [
                f"{language}\t{e.english}\t{e.translation}\t{e.kind}\t{e.seen}\t{e.share:.3f}\n"
                for e in entries
            ]
            words = sum(entry.kind == "word" for entry in entries)
            note = "" if language in enough else "  too few to learn from"
            table.append(f"{language:<12}{len(found):>16,}{words:>10,}{len(entries) - words:>10,}{note}")
    _write(out, "".join(lines).encode())
    return "\n".join([*table, f"written to {out}; name it under 'lexicons' in the recipe"])


def _write(out: Path, content: bytes) -> None:
    """Beside its place, then renamed: an interrupted run leaves what was there."""
    beside = out.with_name(out.name + ".new")
    try:
        beside.write_bytes(gzip.compress(content, mtime=0) if out.suffix == ".gz" else content)
        beside.replace(out)
    except OSError as error:
        raise UserError(f"--out {out}: can not be written: {error.strerror or error}.") from None
