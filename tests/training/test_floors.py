"""training.floors: held to their definitions on real text; the trained floor is exact in steps."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import permutations
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from training import floors
from training.floors import (
    TokenMeanSettings,
    TrainingTexts,
    inverse_document_frequency,
    ngram_counts,
    ngram_vectors,
    train_token_means,
)
from training.retrieval import LanguageRows, bitext_retrieval, text_keys

ROWS = Path("data/corpora/demo/parallel_train.jsonl.gz")
LANGUAGES = ("en", "de", "fr", "es")
SMALL = TokenMeanSettings(vocabulary_size=4096, width=32, pairs=64)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """The first 300 rows of the demo's training text that exist in all of LANGUAGES."""
    found = []
    with gzip.open(ROWS, "rt", encoding="utf-8") as file:
        for line in file:
            texts = json.loads(line)["t"]
            if all(language in texts for language in LANGUAGES):
                found.append({language: texts[language] for language in LANGUAGES})
            if len(found) == 300:
                return found
    raise AssertionError(f"{ROWS} has only {len(found)} such rows")


def words(text: str) -> np.ndarray:
    """Ids of white-space words: a stand-in for the tokenizer, which is not what is tested here."""
    return np.array([crc32(word.encode()) % 4096 for word in text.casefold().split()], dtype=np.int32)


def training_texts(rows: list[dict[str, str]], groups: np.ndarray | None = None) -> TrainingTexts:
    numbers = np.repeat(np.arange(len(rows)), len(LANGUAGES))
    english = text_keys([row["en"] for row in rows])
    ids = [words(row[language]) for row in rows for language in LANGUAGES]
    return TrainingTexts(ids, numbers, english[numbers] if groups is None else groups[numbers])


def accuracy(rows: list[dict[str, str]], vectors) -> float:
    texts = {}
    for language in LANGUAGES:
        mine = [row[language] for row in rows]
        texts[language] = LanguageRows(np.arange(len(rows)), vectors(mine), text_keys(mine))
    return bitext_retrieval(texts).mean


# ----------------------------------------------------------------------------------------- character 3-grams


def by_counting(texts: list[str]) -> np.ndarray:
    """Cosines of log(1 + count) x IDF, with the 3-grams themselves instead of hashes."""
    counts = []
    for text in texts:
        padded = f" {' '.join(text.casefold().split())} "
        counts.append(Counter(padded[i : i + 3] for i in range(len(padded) - 2)))
    held_by = Counter(gram for count in counts for gram in count)
    grams = sorted(held_by)
    idf = np.array([np.log((1 + len(texts)) / (1 + held_by[gram])) + 1 for gram in grams])
    matrix = np.array([[np.log1p(count[gram]) for gram in grams] for count in counts]) * idf
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix @ matrix.T


def test_ngram_cosines_are_those_of_the_3_grams_themselves(rows):
    # few enough texts that no two of their 3-grams share one of the million buckets
    texts = [row[language] for row in rows[:10] for language in LANGUAGES]
    counts = ngram_counts(texts)
    vectors = ngram_vectors(counts, inverse_document_frequency(counts))
    products = (vectors @ vectors.T).toarray()
    lengths = np.sqrt(np.diag(products))
    np.testing.assert_allclose(products / np.outer(lengths, lengths), by_counting(texts), atol=1e-12)


def test_ngram_buckets_do_not_depend_on_the_process():
    assert sorted(ngram_counts(["Äpfel"]).indices) == [170993, 171330, 466741, 761306, 930902]


@pytest.mark.parametrize("texts", [[""], ["", ""], [" \t"], ["", "abc"], []])
def test_texts_too_short_for_a_3_gram_are_rows_of_zeros(texts):
    counts = ngram_counts(texts)
    assert counts.shape == (len(texts), floors.NGRAM_BUCKETS)
    assert counts.sum(axis=1).ravel().tolist()[0] == [3.0 if text.strip() else 0.0 for text in texts]


def test_the_places_of_a_3_gram_are_told_apart():
    buckets = {int(ngram_counts(["".join(p)]).indices[k]) for p in permutations("abc") for k in range(3)}
    assert len(buckets) == len({f" {''.join(p)} "[k : k + 3] for p in permutations("abc") for k in range(3)})


def test_ngrams_find_part_of_the_translations_of_alike_languages(rows):
    counts = ngram_counts([row[language] for row in rows for language in LANGUAGES])
    frequency = inverse_document_frequency(counts)
    found = accuracy(rows, lambda texts: ngram_vectors(ngram_counts(texts), frequency))
    assert 0.3 < found < 0.95


# ---------------------------------------------------------------------------------------------- token means


def test_token_means_learn_to_find_translations_of_rows_they_never_saw(rows):
    seen, unseen = rows[:250], rows[250:]
    untrained = train_token_means(training_texts(seen), SMALL, steps=0)
    trained = train_token_means(training_texts(seen), SMALL, steps=120)
    assert trained.steps == 120 and trained.loss < 0.5
    for part, gain in ((seen, 0.4), (unseen, 0.05)):
        before = accuracy(part, lambda texts: untrained.vectors([words(t) for t in texts]))
        after = accuracy(part, lambda texts: trained.vectors([words(t) for t in texts]))
        assert after > before + gain


def test_training_is_exact_in_steps_and_depends_on_the_seed(rows):
    texts = training_texts(rows[:80])
    once, again = (train_token_means(texts, SMALL, steps=5) for _ in range(2))
    assert torch.equal(once.table, again.table) and once.loss == again.loss
    other = train_token_means(
        texts, TokenMeanSettings(vocabulary_size=4096, width=32, pairs=64, seed=1), steps=5
    )
    assert not torch.equal(once.table, other.table)


def test_rows_of_one_group_are_never_each_others_negatives(rows):
    one_group = training_texts(rows[:80], groups=np.zeros(80, dtype=np.uint64))
    begun = train_token_means(one_group, SMALL, steps=0)
    assert torch.equal(
        train_token_means(one_group, SMALL, steps=3).table, begun.table
    )  # nothing to tell apart
    assert not torch.equal(train_token_means(training_texts(rows[:80]), SMALL, steps=3).table, begun.table)


def test_a_batch_holds_a_row_once_and_an_epoch_every_row(rows, monkeypatch):
    batches = []
    loss = floors.alignment_loss

    def spy(*arguments, **options):
        batches.append(options["query_groups"].tolist())
        return loss(*arguments, **options)

    monkeypatch.setattr(floors, "alignment_loss", spy)
    numbered = np.arange(128, dtype=np.uint64)
    train_token_means(training_texts(rows[:128], groups=numbered), SMALL, steps=4)
    assert [len(set(batch)) for batch in batches] == [64] * 4
    assert set(batches[0] + batches[1]) == set(batches[2] + batches[3]) == set(range(128))
    batches.clear()
    train_token_means(training_texts(rows[:10], groups=numbered), SMALL, steps=2)  # fewer rows than a batch
    assert [sorted(batch) for batch in batches] == [list(range(10))] * 2


def test_two_texts_of_a_row_are_drawn_uniformly_and_never_the_same_twice():
    length = np.array([2, 3, 5])
    start = np.array([0, 2, 5])
    draw = np.random.default_rng(0)
    seen = Counter()
    for _ in range(4000):
        first, second = floors._two_of_each(start, start + length, draw)
        seen.update(zip(range(3), (first - start).tolist(), (second - start).tolist(), strict=True))
    for row, count in enumerate(length):
        pairs = {(row, a, b) for a, b in permutations(range(count), 2)}
        assert {key for key in seen if key[0] == row} == pairs
        assert all(abs(seen[pair] * len(pairs) / 4000 - 1) < 0.25 for pair in pairs)


def test_training_by_seconds_follows_the_clock(rows, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(floors.time, "monotonic", lambda: float(next(ticks)))
    trained = train_token_means(training_texts(rows[:20]), SMALL, seconds=7)
    assert trained.seconds == 7.0 and trained.steps == 6


def test_vectors_are_plain_means_and_zero_without_tokens(rows):
    trained = train_token_means(training_texts(rows[:20]), SMALL, steps=2)
    vectors = trained.vectors([np.array([5, 7, 7]), np.zeros(0, dtype=np.int32), np.array([9])])
    table = trained.table.numpy()
    np.testing.assert_allclose(vectors, [(table[5] + 2 * table[7]) / 3, 0 * table[0], table[9]], rtol=1e-6)
    assert trained.vectors([]).shape == (0, 32)


def test_what_can_not_be_trained_on_is_refused(rows):
    with pytest.raises(ValueError, match="seconds or steps"):
        train_token_means(training_texts(rows[:20]), SMALL)
    with pytest.raises(ValueError, match="seconds or steps"):
        train_token_means(training_texts(rows[:20]), SMALL, seconds=1, steps=1)
    alone = TrainingTexts([words("one"), words("two")], np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="no row has two texts"):
        train_token_means(alone, SMALL, steps=1)
