"""EncoderConfig refuses shapes that do not fit together and says which would."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from model.config import EncoderConfig
from tests.model.conftest import make_config


def test_defaults_are_those_of_xlmr() -> None:
    config = EncoderConfig(vocabulary_size=250_002, layers=12, width=768, heads=12, feed_forward=3072)
    assert (config.positions, config.longest_document, config.head_width) == (514, 512, 64)
    assert (config.layer_norm_eps, config.initializer_std, config.dropout, config.pad_id) == (
        1e-5,
        0.02,
        0.0,
        1,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width 32 is not divisible by 5 heads; heads could be 2, 4, 8"),
        ({"positions": 2}, r"positions 2 leaves no room: .* positions = n \+ 2"),
        ({"pad_id": 101, "positions": 200}, "pad_id 101 is not an id of a vocabulary of 101"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"depth": 3}, "Extra inputs are not permitted"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_reason(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(**changes)
