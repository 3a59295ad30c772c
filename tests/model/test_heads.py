"""Sentence vectors and their temperature."""

from __future__ import annotations

import pytest
import torch

from model.heads import InverseTemperature, sentence_vectors


def test_sentence_vectors_are_means_of_all_tokens_of_unit_length() -> None:
    hidden = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors = sentence_vectors(hidden, torch.tensor([0, 5, 6, 12]))
    for vector, tokens in zip(vectors, hidden.split([5, 1, 6]), strict=True):
        mean = tokens.mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-14, rtol=0)


def test_sentence_vectors_have_a_true_gradient() -> None:
    hidden = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    starts = torch.tensor([0, 4, 6])
    assert torch.autograd.gradcheck(lambda h: sentence_vectors(h, starts), hidden.requires_grad_())


def test_sentence_vectors_of_bfloat16_are_float32() -> None:
    hidden = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).bfloat16() + 3.0
    vectors = sentence_vectors(hidden, torch.tensor([0, 300]))
    assert vectors.dtype == torch.float32
    mean = hidden.double().mean(0)
    torch.testing.assert_close(vectors[0].double(), mean / mean.norm(), atol=1e-6, rtol=0)


def test_no_documents_give_no_vectors_and_stay_in_the_graph() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    vectors = sentence_vectors(hidden, torch.tensor([0]))
    assert vectors.shape == (0, 8)
    vectors.sum().backward()
    assert hidden.grad is not None


@pytest.mark.parametrize("temperature", [0.05, 0.01, 1.0])
def test_inverse_temperature_starts_where_asked(temperature: float) -> None:
    for learned in (True, False):
        value = InverseTemperature(temperature, learned)(torch.zeros(1))
        assert value.shape == () and value.dtype == torch.float32
        torch.testing.assert_close(float(value.detach()), 1 / temperature, rtol=1e-6, atol=0)
        assert value.requires_grad == learned


@pytest.mark.parametrize("temperature", [0.0099, 1.1])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"not within \[0.01, 1.0\]"):
        InverseTemperature(temperature, True)


@pytest.mark.parametrize(("logarithm", "bound", "inward"), [(9.0, 100.0, 1.0), (-2.0, 1.0, -1.0)])
def test_inverse_temperature_is_clamped_and_can_come_back(
    logarithm: float, bound: float, inward: float
) -> None:
    head = InverseTemperature(0.05, True)
    assert head.logarithm is not None
    with torch.no_grad():
        head.logarithm.fill_(logarithm)
    torch.testing.assert_close(float(head(torch.zeros(1)).detach()), bound, rtol=1e-6, atol=0)
    for sign in (1.0, -1.0):
        head.logarithm.grad = None
        (sign * head(torch.zeros(1))).backward()
        assert head.logarithm.grad is not None
        # A step goes against the gradient: only the sign that leads back into the range has one.
        assert (head.logarithm.grad != 0).item() == (sign == inward)


def test_frozen_temperature_is_not_in_the_weights() -> None:
    assert InverseTemperature(0.05, False).state_dict() == {}
