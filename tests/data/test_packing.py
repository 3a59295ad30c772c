"""Invariants: every document keeps its tokens, compared documents stand first, the tail is one document of padding,
what is generated for a document belongs into its slots."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from data.batch import PackedBatch
from data.laid import Document, Example, Triplet
from tests.packed import pack


def document(ids, context=None, predicted=(), language=3):
    ids = np.array(ids, dtype=np.int32)
    context = len(ids) if context is None else context
    where = np.array(predicted, dtype=np.int64)
    return Document(ids, np.arange(len(ids)) + 2, language, context, where, ids[where])


def test_documents_lie_end_to_end_and_compared_ones_first():
    plain = Example(0, [document([10, 11, 12], predicted=[1])])
    pair = Example(1, [document([20, 21]), document([30])], pairs=[(0, 1)], group=2**63 + 5)
    readers = Example(2, [document([40, 41, 42, 43], context=2, predicted=[2, 3])])
    packed = pack([plain, pair, readers], 16, pad_id=1)
    assert packed["token_ids"].tolist() == [20, 21, 30, 10, 11, 12, 40, 41, 42, 43, 1, 1, 1, 1, 1, 1]
    assert packed["document_starts"].tolist() == [0, 2, 3, 6, 10, 16]
    assert packed["context_lengths"].tolist() == [2, 1, 3, 2, 6]
    assert packed["predicted"].tolist() == [4, 8, 9]
    assert packed["targets"].tolist() == [11, 42, 43]
    assert packed["prediction_stream"].tolist() == [0, 2, 2]
    assert packed["pairs"].tolist() == [[0, 1]]
    assert packed["pair_stream"].tolist() == [1]
    assert packed["pair_groups"].view(np.uint64).tolist() == [2**63 + 5]
    assert (packed["sentence_tokens"], packed["sentence_documents"]) == (3, 2)


def test_pairs_of_later_examples_name_their_own_documents():
    pair = [Example(0, [document([i]), document([i + 1])], pairs=[(0, 1)]) for i in (10, 20, 30)]
    assert pack(pair, 6, 1)["pairs"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_full_stream_has_no_padding():
    packed = pack([Example(0, [document([5, 6])])], 2, 1)
    assert packed["document_starts"].tolist() == [0, 2]


def test_no_examples_make_a_stream_of_padding():
    packed = pack([], 4, 1)
    assert packed["token_ids"].tolist() == [1] * 4
    assert packed["document_starts"].tolist() == [0, 4]
    assert packed["context_lengths"].tolist() == [4]
    assert packed["pairs"].shape == (0, 2) and packed["predicted"].shape == (0,)
    assert packed["sentence_documents"] == 0


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="3 tokens do not fit into a microbatch of 2"):
        pack([Example(0, [document([5, 6, 7])])], 2, 1)


def test_triplets_name_documents_of_the_stream_and_stand_among_the_compared():
    plain = Example(0, [document([10, 11])])
    three = Example(1, [document([i]) for i in (20, 21, 22)], triplets=[Triplet(1, 0, [2], [0.5])])
    four = Example(
        2, [document([i]) for i in (30, 31, 32, 33)], triplets=[Triplet(0, 1, [3, 2], [0.25, -1.0])]
    )
    packed = pack([plain, three, four], 10, 1)
    assert packed["token_ids"].tolist() == [20, 21, 22, 30, 31, 32, 33, 10, 11, 1]
    assert (packed["sentence_tokens"], packed["sentence_documents"]) == (7, 7)
    assert packed["triplet_anchor"].tolist() == [1, 3]
    assert packed["triplet_positive"].tolist() == [0, 4]
    assert packed["triplet_negatives"].tolist() == [[2, -1], [6, 5]]
    assert packed["teacher_gaps"].tolist() == [[0.5, 0.0], [0.25, -1.0]]
    assert packed["triplet_stream"].tolist() == [1, 2]


def test_teacher_vectors_stand_beside_the_compared_documents_only():
    taught = replace(document([20]), teacher=np.array([0.6, 0.8], dtype=np.float16))
    examples = [Example(0, [taught]), Example(1, [document([30]), taught], pairs=[(0, 1)])]
    packed = pack(examples, 3, 1, teacher_width=2)
    assert packed["teacher_vectors"].dtype == np.float32
    assert packed["teacher_vectors"] == pytest.approx(np.array([[0, 0], [0.6, 0.8]]), abs=1e-3)
    assert pack(examples, 3, 1)["teacher_vectors"].shape == (2, 0)
    assert pack([], 3, 1, teacher_width=2)["teacher_vectors"].shape == (0, 2)


def test_slots_are_filled_in_order_by_what_is_generated_for_their_examples():
    def asking(ids, draws):
        where = np.arange(len(ids) - len(draws), len(ids))
        zeros = np.zeros(len(where), dtype=np.int64)
        asked = document(ids, context=int(where[0]))
        return replace(asked, predicted=where, targets=zeros, draws=np.array(draws))

    plain = Example(0, [document([10, 11])])
    late = Example(
        1,
        [replace(document([20, 0, 21, 0]), slots=np.array([1, 3])), document([22])],
        generation=[asking([20, 21, 9, 9], [0.25, 0.5])],
    )
    compared = Example(
        2,
        [document([30]), replace(document([0, 31]), slots=np.array([0]))],
        pairs=[(0, 1)],
        generation=[asking([30, 9], [0.75])],
    )
    batch = PackedBatch.from_arrays(pack([plain, late, compared], 12, pad_id=1))
    assert batch.slots.tolist() == [1, 6, 8]
    generation = batch.generation
    assert generation.token_ids.tolist() == [30, 9, 20, 21, 9, 9]  # no padding: only as long as it must be
    assert generation.predicted.tolist() == [1, 4, 5]
    assert generation.draws.tolist() == [0.75, 0.25, 0.5]
    assert generation.context_lengths.tolist() == [1, 2]
    assert generation.generation is None and len(generation.slots) == 0
    filled = batch.to("cpu").filled(torch.tensor([70, 71, 72]))
    assert filled.token_ids.tolist() == [30, 70, 31, 10, 11, 20, 71, 21, 72, 22, 1, 1]
    assert batch.token_ids.tolist() == [30, 0, 31, 10, 11, 20, 0, 21, 0, 22, 1, 1]
    with pytest.raises(ValueError, match="2 pseudo tokens for 3 slots"):
        batch.filled(torch.tensor([70, 71]))
    assert pack([plain], 2, 1)["generation"] is None


def test_slots_that_nothing_is_generated_for_are_refused():
    with pytest.raises(ValueError, match="generates 0 pseudo tokens for 1 slots"):
        pack([Example(0, [replace(document([5, 6]), slots=np.array([1]))])], 2, 1)


def test_what_is_compared_has_nothing_to_predict():
    masked = replace(document([5, 6]), predicted=np.array([1]), targets=np.array([9]))
    with pytest.raises(ValueError, match="documents that are compared have tokens to predict"):
        pack([Example(0, [masked, document([7])], [(0, 1)])], 4, 1)


def test_a_document_tells_its_language_in_all_its_tokens_or_in_none():
    told, untold = (Example(0, [replace(document([5, 6]), language_shown=shown)]) for shown in (True, False))
    assert pack([told, untold], 6, 1)["language_shown"].tolist() == [True, True, False, False, False, False]


def test_a_batch_of_no_tokens_has_every_column():
    empty, packed = PackedBatch.empty("cpu"), PackedBatch.from_arrays(pack([], 0, 1))
    for column in fields(PackedBatch):
        one, other = getattr(empty, column.name), getattr(packed, column.name)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype and one.shape == other.shape, column.name
        else:
            assert one == other, column.name
