"""What the losses ask of an H100, by arithmetic: operations, bytes, and which of the two bounds the time.

Nothing here was measured. Peaks are the maker's for the SXM card: 989 TFLOP/s of dense bfloat16 products with float32
sums, 3.35 TB/s of memory. A time is the larger of operations / peak and bytes / bandwidth: no kernel is faster, real
ones are slower. Inputs and gradients are bfloat16, logits float32. Bytes are those that must pass the memory once
each; what is read again is in the cache or not, which arithmetic does not know.
"""

from __future__ import annotations

from typing import Final, NamedTuple

PEAK: Final = 989e12  # FLOP/s
BANDWIDTH: Final = 3.35e12  # bytes/s


class Line(NamedTuple):
    """A loss of one size in one form."""

    what: str
    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes

    @property
    def bound(self) -> str:
        """What the time depends on."""
        return "products" if self.intensity > PEAK / BANDWIDTH else "memory"

    @property
    def milliseconds(self) -> float:
        """No less than this."""
        return 1e3 * max(self.operations / PEAK, self.bytes / BANDWIDTH)


def lines() -> list[Line]:
    """The sizes of the goals, and an alignment pool of a training step."""
    found = []
    for pairs in (8_192, 131_072):
        found += _alignment(pairs, 768)
    found += _head(8_192, 768, 250_002)
    return [*found, *_margin(4_096, 15, 768)]


def _alignment(pairs: int, width: int) -> list[Line]:
    vectors = 2 * pairs * width * 2  # queries and keys
    square = 4 * pairs * pairs
    product = 2 * pairs * pairs * width
    size = f"alignment {pairs:,} x {width}"
    return [
        # Similarities written, read by two softmaxes, their gradient written, and read by two products.
        Line(f"{size}, dense", 3 * product, 2 * vectors + 6 * square),
        # Two passes over the vectors, gradients written; the similarities stay on the chip.
        Line(f"{size}, streaming", 4 * product, 3 * vectors),
    ]


def _head(rows: int, width: int, ids: int) -> list[Line]:
    table, hidden, logits = ids * width * 2, rows * width * 2, rows * ids
    product = 2 * rows * ids * width
    size = f"head {rows:,} x {width}, {ids:,} ids"
    return [
        # bfloat16 logits written and widened, softmax read and written, its gradient narrowed and read by two products.
        Line(
            f"{size}, dense", 3 * product, 3 * table + 4 * hidden + logits * (2 + 2 + 4 + 4 + 4 + 2 + 2 + 2)
        ),
        # The table once a pass, its gradient added up in float32; the logits stay on the chip.
        Line(f"{size}, streaming", 4 * product, 2 * table + 2 * table + 4 * hidden),
    ]


def _margin(rows: int, negatives: int, width: int) -> list[Line]:
    gathered = rows * negatives * width
    vectors = 2 * rows * width * 2
    operations = 2 * gathered * 3  # a gap, and two gradients
    size = f"margin {rows:,} x {negatives} x {width}"
    return [
        # The copy is read and written, read by the einsum and by its gradient, whose own is written and scattered.
        Line(f"{size}, gather + einsum", operations, 2 * vectors + gathered * 2 * 7),
        # Each negative is read once and its gradient added once.
        Line(f"{size}, fused", operations, 2 * vectors + gathered * (2 + 4 + 4)),
    ]
