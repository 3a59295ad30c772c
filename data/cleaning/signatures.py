"""Near duplicates: MinHash signatures of texts, cut into bands (the door of rensa).

Two texts are taken for near duplicates if one band of their signatures is equal: 14 bands of 8 hashes, as FineWeb has
them (Penedo et al., 2024), find 92 % of the pairs whose sets of shingles overlap by 80 %, 56 % at 70 % and 21 % at
60 % (arithmetic).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.recipe import UserError

BANDS, HASHES = 14, 8
SHINGLE = 5  # characters
_ODD = np.random.Generator(np.random.PCG64(1)).integers(0, 2**63, (BANDS, HASHES), np.uint64) * np.uint64(
    2
) + np.uint64(1)


def library() -> Any:
    """rensa; UserError if it is not installed."""
    try:
        import rensa
    except ImportError:
        raise UserError(
            "cleaning: near duplicates need the package rensa: pip install rensa, or ask for exact ones"
        ) from None
    return rensa


def shingles(folded: str) -> list[str]:
    """The pieces of a folded text that are compared."""
    return [folded[start : start + SHINGLE] for start in range(max(1, len(folded) - SHINGLE + 1))]


def bands_of(sets: Sequence[Sequence[str]]) -> np.ndarray:
    """(n, BANDS) uint64: equal in a column where the signatures of two sets of shingles are equal in that band."""
    if not sets:
        return np.empty((0, BANDS), np.uint64)
    matrix = library().RMinHash.digest_matrix_from_token_sets(sets, BANDS * HASHES, 1)
    hashes = np.array(matrix.to_rows(), np.uint64).reshape(len(sets), BANDS, HASHES)
    mixed = (hashes * _ODD).sum(2, dtype=np.uint64)  # modulo 2 ** 64, other factors for each band
    return mixed ^ (mixed >> np.uint64(29))
