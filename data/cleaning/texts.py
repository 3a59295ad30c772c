"""What is done to a record by itself: its Unicode form, its lengths; and leaving single texts out of it."""

from __future__ import annotations

import hashlib
import statistics
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

import regex

from data.cleaning.config import CleaningConfig
from data.lengths import letters_of
from data.records import Record, ScoredTriplet, Sentence, TranslationPair, segments
from data.sources import Item, Reject, Where

SLACK = 10  # letters added to both lengths of a ratio, so that "OK" and "Einverstanden" go together
_WORDS = regex.compile(r"[\p{L}\p{M}\p{N}]+")


def tidied(items: Iterator[Item], rules: CleaningConfig) -> Iterator[Item]:
    """Items with the records put into their Unicode form, and without texts whose length is not that of the others."""
    for item in items:
        if isinstance(item, Reject):
            yield item
            continue
        where, record = item
        if rules.unicode:
            record = in_nfc(record)
        if isinstance(rules.length_ratio, float) and isinstance(record, TranslationPair):
            yield from without(where, record, misfits(record, rules.length_ratio))
        else:
            yield where, record


def in_nfc(record: Record) -> Record:
    """The record with its texts in normalisation form C; itself where they are."""
    texts = [text for _, text in segments(record)]
    if all(unicodedata.is_normalized("NFC", text) for text in texts):
        return record
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    if isinstance(record, Sentence):
        return Sentence(record.language, texts[0])
    if isinstance(record, TranslationPair):
        return TranslationPair(
            tuple((language, text) for (language, _), text in zip(record.texts, texts, strict=True))
        )
    return replace(record, anchor=texts[0], positive=texts[1], negatives=tuple(texts[2:]))


def misfits(record: TranslationPair, most: float) -> list[str]:
    """Of each text "length_ratio" if its length is not that of the others, else "".

    The others are spoken for by the middle one of all lengths; of two texts neither is the right one.
    """
    lengths = [letters_of(text) + SLACK for _, text in record.texts]
    if len(lengths) == 2:
        usual: float = min(lengths)
        return ["length_ratio" * (max(lengths) > most * usual)] * 2
    usual = statistics.median(lengths)
    return ["length_ratio" * (max(length, usual) > most * min(length, usual)) for length in lengths]


def without(where: Where, record: Record, reasons: Sequence[str]) -> Iterator[Item]:
    """The record without the texts that have a reason, as long as it is one; ``reasons``: "" for a text to keep."""
    if not any(reasons):
        yield where, record
        return
    languages = [language for language, _ in segments(record)]
    bad = [(reason, language) for reason, language in zip(reasons, languages, strict=True) if reason]
    if isinstance(record, TranslationPair) and len(languages) - len(bad) >= 2:
        for reason, language in bad:
            yield Reject(where, reason, language, whole_record=False)
        kept = (text for text, reason in zip(record.texts, reasons, strict=True) if not reason)
        yield where, TranslationPair(tuple(kept))
    else:
        yield Reject(where, *bad[0])


def folded(text: str) -> str:
    """A text as it is compared with others: its words in compatibility form, without case, signs and white space."""
    words = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words or text.split())


def number_of_text(text: str) -> int:
    """64 bits, equal for texts that are equal when folded; ``text`` is folded."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def number_of_record(texts: Sequence[tuple[str, str]]) -> int:
    """64 bits, equal for records of the same (language, folded text), in whatever order."""
    return number_of_text("\n".join(f"{language}\t{text}" for language, text in sorted(texts)))


def language_of(record: Record) -> str:
    """The language of a record that has one, else ""."""
    return record.language if isinstance(record, Sentence | ScoredTriplet) else ""
