"""training.retrieval: held to counting by hand on small cases; ties are lost, duplicates are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from training import retrieval
from training.retrieval import LanguageRows, bitext_retrieval, joined, retrieval_accuracy, text_keys


def by_counting(queries, candidates, answers, keys=None):
    """The definition, one cosine at a time."""
    keys = list(range(len(candidates))) if keys is None else keys
    right = 0
    for query, answer in zip(queries, answers, strict=True):
        cosines = [
            float(query @ c) / max(float(np.linalg.norm(query) * np.linalg.norm(c)), 1e-300)
            for c in candidates
        ]
        good = max(cosine for cosine, key in zip(cosines, keys, strict=True) if key == keys[answer])
        bad = [cosine for cosine, key in zip(cosines, keys, strict=True) if key != keys[answer]]
        right += all(good > cosine + 1e-9 for cosine in bad)
    return right / len(queries)


@pytest.mark.parametrize(("q", "c", "e"), [(1, 1, 1), (1, 7, 3), (7, 7, 2), (40, 41, 3), (5, 100, 16)])
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, csr_matrix])
def test_accuracy_is_what_counting_gives(q, c, e, form):
    draw = np.random.default_rng(q * c)
    queries, candidates = draw.normal(size=(q, e)), draw.normal(size=(c, e))
    answers, keys = draw.integers(0, c, q), draw.integers(0, max(1, c // 2), c)
    for k in (None, keys):
        expected = by_counting(queries, candidates, answers, k)
        assert retrieval_accuracy(form(queries), form(candidates), answers, k) == expected


def test_blocks_of_queries_add_up(monkeypatch):
    draw = np.random.default_rng(0)
    queries, candidates, answers = (
        draw.normal(size=(25, 3)),
        draw.normal(size=(9, 3)),
        draw.integers(0, 9, 25),
    )
    whole = retrieval_accuracy(queries, candidates, answers)
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", 4)
    assert 0 < whole < 1 and retrieval_accuracy(queries, candidates, answers) == whole


def test_length_of_vectors_does_not_matter():
    draw = np.random.default_rng(1)
    queries, candidates, answers = draw.normal(size=(30, 4)), draw.normal(size=(30, 4)), np.arange(30)
    scaled = candidates * draw.uniform(0.01, 100, size=(30, 1))
    assert retrieval_accuracy(queries, scaled, answers) == retrieval_accuracy(queries, candidates, answers)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_are_lost_wherever_the_right_answer_stands(dtype):
    # 67 equal vectors whose cosines differ in the last bits depending on the column
    same = np.tile(np.random.default_rng(2).normal(size=(1, 37)), (67, 1)).astype(dtype)
    assert retrieval_accuracy(same, same, np.arange(67)) == 0.0


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_degenerate_vectors_find_nothing(value):
    vectors = np.full((5, 3), value)
    with np.errstate(invalid="ignore"):
        assert retrieval_accuracy(vectors, vectors, np.arange(5)) == 0.0


def test_a_candidate_with_the_text_of_the_right_answer_is_right():
    texts = ["Cancel", "Save", "Cancel"]
    candidates = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    queries = np.array([[1.0, 0.1], [0.1, 1.0], [1.0, 0.1]])
    assert retrieval_accuracy(queries, candidates, np.arange(3)) == pytest.approx(
        1 / 3
    )  # tied with each other
    assert retrieval_accuracy(queries, candidates, np.arange(3), text_keys(texts)) == 1.0
    # a wrong text with the same vector still loses
    assert (
        retrieval_accuracy(queries, candidates, np.arange(3), text_keys(["Cancel", "Save", "Abort"])) == 1 / 3
    )


def test_text_keys_are_equal_exactly_where_texts_are():
    texts = ["a", "b", "a", "", "ä", "ä"]  # the last one is decomposed: another text
    keys = text_keys(texts)
    assert keys.dtype == np.uint64
    assert (keys[:, None] == keys).tolist() == [[a == b for b in texts] for a in texts]
    assert text_keys([]).shape == (0,)


@pytest.mark.parametrize("answers", [[0, 1], [0, 1, 3], [0, 1, -1]])
def test_answers_that_do_not_fit_are_refused(answers):
    with pytest.raises(ValueError, match="3 queries"):
        retrieval_accuracy(np.eye(3), np.eye(3), np.array(answers))


def test_no_queries_is_nan_and_not_perfect():
    assert math.isnan(retrieval_accuracy(np.zeros((0, 3)), np.eye(3), np.zeros(0, dtype=int)))


def language(rows, hits, width=8, texts=None):
    """Row r has the unit vector r; a row that is not in ``hits`` has its neighbour's instead."""
    vectors = np.stack([np.eye(width)[r if r in hits else (r + 1) % width] for r in rows])
    return LanguageRows(np.array(rows), vectors, None if texts is None else text_keys(texts))


def test_queries_are_the_shared_rows_and_candidates_all_rows_of_the_other_language():
    texts = {
        "en": language([0, 1, 2, 3, 4, 5], hits=range(6)),
        "de": language([5, 3, 1], hits=[5, 1]),  # 3 stands at 4; rows in any order
        "fr": language([7], hits=[7]),  # shares no row with anybody
    }
    result = bitext_retrieval(texts, other_pairs=10)
    assert result.accuracy == {("de", "en"): 2 / 3, ("en", "de"): 2 / 3}
    assert result.queries == {("de", "en"): 3, ("en", "de"): 3}
    assert result.languages == ["de"] and result.mean == 2 / 3 and math.isnan(result.mean_of_others)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, csr_matrix])
def test_distractors_are_candidates_that_answer_nothing(form):
    def texts(rows, names):
        return LanguageRows(np.array(rows), form(np.eye(8)[rows]), text_keys(names))

    test = {"en": texts([0, 1, 2], ["a", "b", "c"]), "de": texts([0, 1, 2], ["A", "B", "C"])}
    # German: row 0's vector with another text (a tie: lost), row 1's vector with the same text (right)
    train = {"en": texts([5], ["f"]), "de": texts([0, 1], ["X", "B"])}
    assert bitext_retrieval(test).mean == 1.0
    assert bitext_retrieval(test, distractors=train).accuracy == {("de", "en"): 1.0, ("en", "de"): 2 / 3}


def test_distractors_with_keys_and_texts_without_are_refused():
    test = {name: language([0, 1], hits=[0, 1]) for name in ("en", "de")}
    with pytest.raises(ValueError, match="text keys"):
        bitext_retrieval(test, distractors={"de": language([3], hits=[3], texts=["x"])})


def test_other_pairs_are_drawn_by_seed_in_both_directions_and_stay_out_of_the_mean():
    codes = ["en", "de", "fr", "es", "it", "pl"]
    texts = {code: language(range(8), hits=range(8)) for code in codes}
    texts["de"] = language(range(8), hits=[0, 1])
    drawn = {}
    for seed in range(6):
        result = bitext_retrieval(texts, other_pairs=3, seed=seed)
        others = {pair for pair in result.accuracy if "en" not in pair}
        assert len(others) == 6 and {pair[::-1] for pair in others} == others
        assert result.mean == np.mean([1, 1, 1, 1, result.of_language("de")])
        backwards = bitext_retrieval(dict(reversed(texts.items())), other_pairs=3, seed=seed)
        assert backwards.accuracy == result.accuracy
        drawn[seed] = frozenset(others)
    assert len(set(drawn.values())) > 1
    assert len(bitext_retrieval(texts, other_pairs=99).accuracy) == 2 * 15


def test_scalars_name_the_set_every_direction_and_the_means():
    texts = {code: language(range(4), hits=range(4)) for code in ("en", "de", "fr")}
    scalars = bitext_retrieval(texts, other_pairs=1).scalars("held_out")
    assert scalars == {
        f"retrieval/held_out/{key}": 1.0
        for key in ("mean", "mean_of_others", "language/de", "language/fr")
        + ("de-en", "en-de", "fr-en", "en-fr", "de-fr", "fr-de")
    }
    assert "retrieval/x/mean_of_others" not in bitext_retrieval(texts).scalars("x")


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, csr_matrix])
def test_joined_sets_are_one_set_in_order_with_rows_of_its_own(form):
    a = LanguageRows(np.array([4, 2]), form(np.eye(3)[[0, 1]]), text_keys(["a", "b"]))
    b = LanguageRows(np.array([4]), form(np.eye(3)[[2]]), text_keys(["c"]))
    together = joined([a, b])
    vectors = together.vectors if isinstance(together.vectors, np.ndarray) else together.vectors.toarray()
    assert together.rows.tolist() == [0, 1, 2] and vectors.tolist() == np.eye(3).tolist()
    assert together.keys.tolist() == text_keys(["a", "b", "c"]).tolist()
