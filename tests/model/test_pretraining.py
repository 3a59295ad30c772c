"""One forward for all tasks: what it returns, that no parameter is ever left out, where weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.heads import sentence_vectors
from model.pretraining import PretrainingModel
from tests.model.conftest import make_config

Build = Callable[..., PretrainingModel]


@dataclass
class Microbatch:
    token_ids: Tensor
    position_ids: Tensor
    language_ids: Tensor
    language_shown: Tensor
    document_starts: Tensor
    context_lengths: Tensor
    predicted: Tensor
    targets: Tensor
    draws: Tensor
    sentence_tokens: int
    sentence_documents: int


def microbatch(sentences: int = 3, predicted: int = 6, documents: bool = True) -> Microbatch:
    """Documents of 5, 9, 7, 12 and 8 tokens and a tail; the last but one has readers."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 9, 7, 12, 8] if documents else []
    ids = torch.cat(
        [torch.randint(4, 100, (sum(lengths),), generator=generator), torch.ones(7, dtype=torch.long)]
    )
    return Microbatch(
        token_ids=ids,
        position_ids=torch.cat([torch.arange(n) + 2 for n in [*lengths, 7]]),
        language_ids=torch.zeros(len(ids), dtype=torch.long),
        language_shown=torch.zeros(len(ids), dtype=torch.bool),
        document_starts=torch.tensor([0, *lengths, 7]).cumsum(0),
        context_lengths=torch.tensor([5, 9, 7, 4, 8, 7] if documents else [7]),
        predicted=torch.tensor([40, 21, 25, 26, 33, 32][:predicted], dtype=torch.long),
        targets=torch.tensor([7, 8, 9, 10, 11, 12][:predicted], dtype=torch.long),
        draws=torch.linspace(0, 0.99, predicted, dtype=torch.float64),
        sentence_tokens=sum(lengths[:sentences]),
        sentence_documents=sentences,
    )


def test_losses_are_those_of_the_predicted_positions_alone(small: Build) -> None:
    model, batch = small(), microbatch()
    output = model(batch)
    hidden = model.encoder(batch.token_ids, batch.position_ids, batch.document_starts, batch.context_lengths)
    logits = model.head.logits(hidden, model.encoder.embedding.word.weight)[batch.predicted]
    wanted = F.cross_entropy(logits, batch.targets, reduction="none")
    torch.testing.assert_close(output.prediction_losses, wanted, atol=1e-12, rtol=0)
    assert torch.equal(output.predictions_correct, logits.argmax(1) == batch.targets)
    vectors = sentence_vectors(hidden[: batch.sentence_tokens], batch.document_starts[:4])
    torch.testing.assert_close(output.sentence_vectors, vectors, atol=1e-12, rtol=0)
    torch.testing.assert_close(float(output.inverse_temperature.detach()), 20.0, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sentences", [0, 3])
def test_sentence_vectors_of_the_first_pass_equal_those_of_the_whole_forward(
    small: Build, sentences: int
) -> None:
    model, batch = small(), microbatch(sentences)
    with torch.no_grad():
        first = model(batch, sentence_vectors_only=True)
    assert first.prediction_losses.shape == first.predictions_correct.shape == (0,)
    assert first.sentence_vectors.shape == (sentences, 32)
    torch.testing.assert_close(first.sentence_vectors, model(batch).sentence_vectors, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("predicted", [0, 6])
@pytest.mark.parametrize("sentences", [0, 3])
def test_every_parameter_has_a_gradient_in_every_microbatch(
    small: Build, sentences: int, predicted: int, documents: bool, dtype: torch.dtype
) -> None:
    """ZeRO-3 applies the last step's gradient again to a parameter that has none."""
    if not documents:
        sentences = predicted = 0
    model = small(dtype, languages=3)
    output = model(microbatch(sentences, predicted, documents))
    output.prediction_total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if not predicted:
        assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_a_learned_temperature_gets_its_gradient_from_the_comparison(small: Build) -> None:
    model = small()
    model(microbatch()).inverse_temperature.backward()
    torch.testing.assert_close(model.temperature.logarithm.grad.item(), 20.0, rtol=1e-6, atol=0)


def test_bfloat16_weights_give_float32_losses_and_vectors_close_to_float64(small: Build) -> None:
    exact, rounded = small()(microbatch()), small(torch.bfloat16)(microbatch())
    for name in ("prediction_losses", "sentence_vectors", "inverse_temperature"):
        assert getattr(rounded, name).dtype == torch.float32
    torch.testing.assert_close(rounded.sentence_vectors.double(), exact.sentence_vectors, atol=0.05, rtol=0)
    torch.testing.assert_close(
        rounded.prediction_losses.double(), exact.prediction_losses, atol=0.3, rtol=0.05
    )


def test_weights_depend_on_the_seed_and_the_name_alone() -> None:
    def weights(seed: int, **changes: float) -> dict[str, Tensor]:
        return PretrainingModel(make_config(**changes), seed=seed).state_dict()

    torch.manual_seed(1)
    first = weights(5)
    torch.manual_seed(2)
    again, deeper, other = weights(5), weights(5, layers=4), weights(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], deeper[name]) for name in first)
    matrices = [name for name in first if first[name].ndim == 2]
    assert len(matrices) == 3 + 4 * 3
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    for name in matrices:
        assert abs(float(first[name].std()) - 0.02) < 0.002, name
    assert all((first[name] == 0).all() for name in first if name.endswith("bias"))
    assert all((first[name] == 1).all() for name in first if name.endswith("norm.weight"))
    assert (first["encoder.embedding.word.weight"][1] == 0).all()


def test_a_large_model_is_built_on_the_meta_device_without_memory() -> None:
    config = make_config(
        vocabulary_size=250_002, layers=24, width=1024, heads=16, feed_forward=4096, positions=514
    )
    with torch.device("meta"):
        model = PretrainingModel(config)
    assert all(p.is_meta for p in model.parameters())
    # XLM-R large (XLMRobertaModel) without its row of token types and its pooler.
    assert sum(p.numel() for p in model.encoder.parameters()) == 559_890_432 - 1024 - (1024 * 1024 + 1024)
