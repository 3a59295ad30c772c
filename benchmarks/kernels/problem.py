"""What is measured: a loss of one size; what a contestant returns; the sizes of each preset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from benchmarks.turns.process import Unavailable

VOCABULARY: Final = 250_002  # of XLM-R
WIDTH: Final = 768


def not_here(error: Exception) -> Unavailable:
    """Why an implementation of ours was refused, without the remedy."""
    return Unavailable(str(error).partition(": ")[2].partition(";")[0])


class Outcome(NamedTuple):
    """Of one forward and backward."""

    loss: Any  # Tensor ()
    gradients: tuple[Any, ...]  # of the inputs, in their order


Run = Callable[[], Outcome]


class Problem(NamedTuple):
    """A loss of one size, and who is measured on it, over how many rounds."""

    operation: str
    size: dict[str, int]
    contestants: tuple[str, ...]
    rounds: int
    dtype: str = "float32"
    device: str = "cpu"

    def title(self) -> str:
        """As in the heading of a table."""
        return f"{self.operation}: {' x '.join(f'{count:,} {name}' for name, count in self.size.items())}, {self.dtype}"


ALIGNMENT: Final = (
    "reference", "streaming", "triton", "compiled", "open_clip", "sentence_transformers",
    "sentence_transformers_cached", "products",
)  # fmt: skip
MARGIN: Final = ("gather", "reference", "streaming", "native", "triton", "cuda", "compiled")
HEAD: Final = (
    "dense", "reference", "streaming", "triton", "torch", "compiled", "torch_chunks", "liger", "cut_cross_entropy",
)  # fmt: skip


def _head(rows: int) -> dict[str, int]:
    return {"rows": rows, "width": WIDTH, "ids": VOCABULARY}


_TRIPLETS: Final = {"rows": 4096, "negatives": 15, "width": WIDTH}
PRESETS: Final[dict[str, tuple[Problem, ...]]] = {
    "quick": (
        Problem("alignment", {"pairs": 4096, "width": WIDTH}, ALIGNMENT, 3),
        Problem("margin", _TRIPLETS, MARGIN, 5),
        Problem("vocabulary", _head(256), HEAD, 3),
    ),
    # The largest are what dense torch can not hold: 131,072 pairs have 64 GiB of similarities, several times over.
    "full": (
        Problem("alignment", {"pairs": 8192, "width": WIDTH}, ALIGNMENT, 3),
        Problem("alignment", {"pairs": 131_072, "width": WIDTH}, ("streaming", "triton", "products"), 1),
        Problem("margin", _TRIPLETS, MARGIN, 9),
        Problem("vocabulary", _head(1024), HEAD, 3),
        Problem("vocabulary", _head(8192), ("streaming", "triton"), 1),
    ),
}
