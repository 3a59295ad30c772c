"""Rows of cells as text and as Markdown; the first row is the head, the first column left-aligned."""

from __future__ import annotations

from collections.abc import Sequence


def plain(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal; a long second cell of a row without figures may run over the others."""
    widths = [
        max(len(row[n]) for row in rows if n == 0 or row[-1] or row is rows[0]) for n in range(len(rows[0]))
    ]
    lines = []
    for row in rows:
        first, *others = row
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        if row[1].startswith("- ("):
            cells = [row[1]]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [rows[0], rule, *rows[1:]])


def seconds(value: float) -> str:
    """With as many digits as tell two of them apart."""
    return f"{value:.3f}" if value >= 0.1 else f"{value:.5f}"
