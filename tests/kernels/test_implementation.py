"""The rule that chooses an implementation: explicit ones are taken or refused, "auto" says what it took."""

from __future__ import annotations

import logging

import pytest

from kernels.implementation import ImplementationUnavailable, choose, taken_by_auto


def test_an_explicit_choice_is_taken() -> None:
    assert choose("op", "reference", {"reference", "streaming"}, "streaming") == "reference"
    assert "op" not in taken_by_auto()


def test_an_explicit_choice_is_never_replaced() -> None:
    with pytest.raises(
        ImplementationUnavailable, match=r"'triton'.*choose one of reference, streaming, or 'auto'"
    ):
        choose("op", "triton", {"reference", "streaming"}, "streaming")


def test_an_unknown_choice_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown implementation 'fast'; choose one of auto, reference"):
        choose("op", "fast", {"reference"}, "reference")


def test_auto_says_once_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kernels.implementation"):
        for recommended in ("streaming", "streaming", "reference", "streaming", "reference"):
            assert choose("spoken", "auto", {"reference", "streaming"}, recommended) == recommended
    assert [record.getMessage() for record in caplog.records] == [
        "spoken: auto took the streaming implementation",
        "spoken: auto took the reference implementation",
    ]
    assert taken_by_auto()["spoken"] == "reference"
