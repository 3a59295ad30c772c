"""Groups: which texts of a store may mean the same, so that none is taken for another's negative.

Translations of each other mean the same, and so do equal texts, in whatever corpus and language they stand. A group
is all that these two relations connect: rows that share a text in any language are one group.

The components are found on disk, by the alternating stars of Kiveris et al. (2014), "Connected Components in MapReduce
and Beyond". An edge is a pair (high, low) of numbers of texts. Of each number the parent is the lowest that it has an
edge down to, or itself. Until nothing changes:
    small star    (u, v) -> (v, parent of u), for all v but the parent; (u, parent of u) stays
    large star    (v, u) -> (v, parent of u)
What is left are stars: every number has one edge, to the lowest of its group. Edges are dealt out by their numbers, so
that a part of them is held at a time, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.parts import Parts, bits_for, part_of
from data.spool import rows_of

_EDGE = np.dtype([("high", np.uint64), ("low", np.uint64)])
_TEXT = np.dtype([("number", np.uint64), ("place", np.int64)])
_GROUP = np.dtype([("place", np.int64), ("group", np.uint64)])


def number_groups(
    numbers: Sequence[Path], joined: Sequence[Path], groups: Sequence[Path], folder: Path
) -> int:
    """Write the groups of the texts of some corpora; returns how many rounds it took.

    numbers: of each corpus a file of (S,) uint64, equal for equal texts. joined: (S,) bool, whether a segment means the
    same as the one before it. groups: the files to write, (S,) uint64. A group has the smallest number of its texts, so
    a text that nothing is connected with keeps its own. folder: for what is in between, about 50 bytes a segment at
    most.
    """
    bits = bits_for(sum(texts.stat().st_size for texts in numbers) // 8)
    edges = Parts(folder / "edges", _EDGE)
    for texts, joins in zip(numbers, joined, strict=True):
        for rows in _joined_pairs(texts, joins):
            edges.deal(part_of(rows["high"], bits), rows)
    rounds, changed = 0, True
    while changed:
        edges, changed = _round(edges, bits, folder / f"round-{rounds}")
        rounds += 1
    for texts, into in zip(numbers, groups, strict=True):
        _write_groups(texts, edges, bits, into, folder)
    edges.remove()
    return rounds


def _joined_pairs(texts: Path, joins: Path) -> Iterator[np.ndarray]:
    """Edges between neighbours that mean the same, a block at a time."""
    last = np.zeros(1, np.uint64)
    for block, together in zip(rows_of(texts, np.uint64), rows_of(joins, bool), strict=True):
        before = np.concatenate([last, block[:-1]])[together]
        after = block[together]
        last = block[-1:]
        different = before != after
        before, after = before[different], after[different]
        yield _edges(np.maximum(before, after), np.minimum(before, after))


def _round(edges: Parts, bits: int, folder: Path) -> tuple[Parts, bool]:
    """One small star and one large star; whether they changed anything. Takes the old edges away."""
    by_high, by_low = Parts(folder / "high", _EDGE), Parts(folder / "low", _EDGE)
    changed = False
    for part in range(2**bits):
        table = _parents(edges, part)
        stars = [table]
        for block in edges.rows(part):
            parents = _parent_of(block["high"], table)
            others = block["low"] != parents
            changed |= bool(others.any())
            stars.append(_edges(block["low"][others], parents[others]))
            for rows in stars:
                by_high.deal(part_of(rows["high"], bits), rows)
                by_low.deal(part_of(rows["low"], bits), rows)
            stars = []
    edges.remove()
    new = Parts(folder / "edges", _EDGE)
    for part in range(2**bits):
        table = _parents(by_high, part)
        for block in by_low.rows(part):
            low = _parent_of(block["low"], table)
            changed |= bool((low != block["low"]).any())
            new.deal(part_of(block["high"], bits), _edges(block["high"], low))
    by_high.remove()
    by_low.remove()
    return new, changed


def _parents(edges: Parts, part: int) -> np.ndarray:
    """The edges of a part, high ascending, of each the one to the lowest."""
    table = np.empty(0, _EDGE)
    for block in edges.rows(part):
        both = np.concatenate([table, block])
        both = both[np.lexsort((both["low"], both["high"]))]
        table = both[np.concatenate([[True], both["high"][1:] != both["high"][:-1]])]
    return table


def _parent_of(numbers: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The parent of each number, itself where it has no edge down."""
    if not len(table):
        return numbers
    found = table[np.minimum(np.searchsorted(table["high"], numbers), len(table) - 1)]
    return np.where(found["high"] == numbers, found["low"], numbers)


def _write_groups(texts: Path, stars: Parts, bits: int, into: Path, folder: Path) -> None:
    """Look up every text's group, part by part, and bring the answers back into the order of the texts."""
    asked = Parts(folder / "texts", _TEXT)
    place = 0
    for block in rows_of(texts, np.uint64):
        rows = np.empty(len(block), _TEXT)
        rows["number"], rows["place"] = block, np.arange(place, place + len(block))
        asked.deal(part_of(block, bits), rows)
        place += len(block)
    stretch = max(1, -(-place // 2**bits))
    found = Parts(folder / "groups", _GROUP)
    for part in range(2**bits):
        table = _parents(stars, part)
        for block in asked.rows(part):
            group = _parent_of(block["number"], table)
            moved = group != block["number"]
            rows = np.empty(int(moved.sum()), _GROUP)
            rows["place"], rows["group"] = block["place"][moved], group[moved]
            found.deal((rows["place"] // stretch).astype(np.uint8), rows)
    asked.remove()
    with texts.open("rb") as own, into.open("wb") as file:
        for number, start in enumerate(range(0, place, stretch)):
            groups = np.fromfile(own, np.uint64, stretch)
            for block in found.rows(number):
                groups[block["place"] - start] = block["group"]
            file.write(groups.data)
    found.remove()


def _edges(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    edges = np.empty(len(high), _EDGE)
    edges["high"], edges["low"] = high, low
    return edges
