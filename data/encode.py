"""Records -> the columns of a token store, a chunk at a time: the work of prepare's processes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.records import Record, ScoredTriplet, TranslationPair, segments
from data.sources import Reject, Where
from data.tokenizer import Tokenizer
from data.words import encoder_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some consecutive records of a corpus, encoded. R records, S segments, C characters in bytes, I ids."""

    records: int  # that were given, R of them kept
    languages: tuple[str, ...]  # (S,)
    record_sizes: np.ndarray  # (R,) int64, segments of each record
    numbers: np.ndarray  # (S,) uint64, equal for equal texts
    joined: np.ndarray  # (S,) bool, whether a segment means the same as the one before it
    text: bytes  # (C,) UTF-8
    text_lengths: np.ndarray  # (S,) int64
    ids: np.ndarray  # (I,) int32, without special tokens
    lengths: np.ndarray  # (S,) int32
    scores: np.ndarray | None  # (S,) float32, NaN for the anchor; None if the corpus is not scored
    truncated: Counter[str]  # texts cut to the longest length, by language
    rejects: list[Reject]


def encode_chunk(
    records: Sequence[tuple[Where, Record]], tokenizer_folder: Path, fingerprint: str, maximum_tokens: int
) -> Chunk:
    """Encodes records with their places; texts that come out without ids are rejected as empty.

    fingerprint: the tokenizer's. maximum_tokens: longest text with <s> and </s>. A pure function of its arguments, so
    that the store does not depend on how chunks are shared out.
    """
    tokenizer = _opened(tokenizer_folder, fingerprint)
    texts = [segments(record) for _, record in records]
    encoded = iter(encoder_of(tokenizer)([text for row in texts for _, text in row]))
    kept: list[tuple[str, str, np.ndarray]] = []
    sizes, joined, scores, rejects = [], [], [], []
    truncated: Counter[str] = Counter()
    for (where, record), row in zip(records, texts, strict=True):
        whole = [(language, text, next(encoded)) for language, text in row]
        good = [segment for segment in whole if len(segment[2])]
        if len(good) < len(whole):
            lost = [language for language, _, ids in whole if not len(ids)]
            if not (isinstance(record, TranslationPair) and len(good) >= 2):
                rejects.append(Reject(where, "empty", lost[0]))
                continue
            rejects += [Reject(where, "empty", language, whole_record=False) for language in lost]
        sizes.append(len(good))
        # Translations mean the same, and so do anchor and positive; the negatives after them do not.
        joined += [0 < i and (i == 1 or isinstance(record, TranslationPair)) for i in range(len(good))]
        if isinstance(record, ScoredTriplet):
            scores += [float("nan"), *record.scores]
        truncated.update(language for language, _, ids in good if len(ids) > maximum_tokens - 2)
        kept += good
    blobs = [text.encode("utf-8") for _, text, _ in kept]
    cut = [ids[: maximum_tokens - 2] for _, _, ids in kept]
    return Chunk(
        records=len(records),
        languages=tuple(language for language, _, _ in kept),
        record_sizes=np.array(sizes, dtype=np.int64),
        numbers=np.array([number_of(text) for _, text, _ in kept], dtype=np.uint64),
        joined=np.array(joined, dtype=bool),
        text=b"".join(blobs),
        text_lengths=np.array([len(blob) for blob in blobs], dtype=np.int64),
        ids=np.concatenate(cut) if cut else np.empty(0, dtype=np.int32),
        lengths=np.array([len(ids) for ids in cut], dtype=np.int32),
        scores=np.array(scores, dtype=np.float32) if scores else None,
        truncated=truncated,
        rejects=rejects,
    )


def number_of(text: str) -> int:
    """64-bit number of a text, equal for texts that are equal up to white space."""
    return int.from_bytes(
        hashlib.blake2b(" ".join(text.split()).encode("utf-8"), digest_size=8).digest(), "little"
    )


@lru_cache(maxsize=1)
def _opened(folder: Path, fingerprint: str) -> Tokenizer:
    """Kept from chunk to chunk; another one may lie in the same folder later."""
    return Tokenizer.open(folder)
