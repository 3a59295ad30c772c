"""Which ids are chosen at placeholders: never special ones, by record and not by batch, without gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model import generation
from model.generation import Decoding
from model.pretraining import PretrainingModel
from tests.model.test_pretraining import microbatch

Build = Callable[..., PretrainingModel]
ORDINARY = range(4, 30)


def scored(placeholders: int, vocabulary: int = 35, width: int = 6, seed: int = 0) -> tuple[Tensor, ...]:
    """features, table, bias, languages, draws"""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(placeholders, width, generator=generator, dtype=torch.float64),
        torch.randn(vocabulary, width, generator=generator, dtype=torch.float64),
        torch.randn(vocabulary, generator=generator, dtype=torch.float64),
        torch.randint(3, (placeholders,), generator=generator),
        torch.rand(placeholders, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("placeholders", [0, 1, 7, 400])
@pytest.mark.parametrize("at_once", [1, 100, 2**24])
def test_argmax_is_over_the_ordinary_ids_however_many_are_scored_at_once(
    monkeypatch: pytest.MonkeyPatch, placeholders: int, at_once: int
) -> None:
    monkeypatch.setattr(generation, "SCORES_AT_ONCE", at_once)
    features, table, bias, languages, draws = scored(placeholders)
    bias[:4] = bias[30:] = 100.0
    ids = Decoding(ORDINARY).choose(features, table, bias, languages, draws)
    assert ids.tolist() == ((features @ table.T + bias)[:, 4:30].argmax(1) + 4).tolist()
    assert ids.dtype == torch.int64


@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_a_restricted_language_gets_its_own_ids_and_one_without_any_gets_all(top_k: int) -> None:
    features, table, bias, languages, draws = scored(500)
    draws[:250] = 0.999999
    allowed = torch.zeros(3, 35, dtype=torch.bool)
    allowed[0, [2, 5, 6, 31]] = True
    allowed[1, 20:26] = True
    ids = Decoding(ORDINARY, top_k, 2.0, allowed).choose(features, table, bias, languages, draws)
    assert set(ids[languages == 0].tolist()) == {5, 6}
    assert set(ids[languages == 1].tolist()) <= set(range(20, 26))
    assert len(set(ids[languages == 2].tolist()) - {5, 6, *range(20, 26)}) > 5


def test_draws_follow_the_probabilities_of_the_best_ids() -> None:
    features, table, bias, _, _ = scored(1)
    count, temperature = 20_000, 1.7
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids = Decoding(ORDINARY, 5, temperature).choose(
        features.expand(count, -1), table, bias, torch.zeros(count, dtype=torch.long), draws
    )
    best, columns = (features @ table.T + bias)[0, 4:30].topk(5)
    shares = torch.bincount(ids, minlength=35)[columns + 4] / count
    torch.testing.assert_close(shares.double(), (best / temperature).softmax(0), atol=1e-4, rtol=0)


def test_a_draw_belongs_to_its_placeholder_and_not_to_its_place_in_the_batch() -> None:
    parts = scored(50)
    decoding = Decoding(ORDINARY, 8)
    whole = decoding.choose(*parts)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    features, table, bias, languages, draws = parts
    moved = decoding.choose(features[order], table, bias, languages[order], draws[order])
    assert torch.equal(moved, whole[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_generates_by_its_own_scores_and_without_a_graph(small: Build, dtype: torch.dtype) -> None:
    model, batch = small(dtype), microbatch()
    ids = model(batch, decoding=Decoding(range(4, 100)))
    hidden = model.encoder(batch.token_ids, batch.position_ids, batch.document_starts, batch.context_lengths)
    scores = model.head.logits(hidden, model.encoder.embedding.word.weight)[batch.predicted, 4:100]
    assert ids.tolist() == (scores.argmax(1) + 4).tolist()
    assert not ids.requires_grad and all(p.grad is None for p in model.parameters())
