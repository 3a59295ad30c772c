"""Examples that a test has one by one, as the arrays of a microbatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import data.packing
from data.laid import Example, Laid


def pack(examples: Sequence[Example], tokens: int, pad_id: int, *, teacher_width: int = 0) -> dict[str, Any]:
    """Those that are compared, then the others, each in their order."""
    compared = [example for example in examples if example.pairs or example.triplets]
    others = [example for example in examples if not (example.pairs or example.triplets)]
    blocks = [Laid.of(part) for part in (compared, others)]
    return data.packing.pack(blocks, tokens, pad_id, teacher_width=teacher_width)
