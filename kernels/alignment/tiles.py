"""Tiles of a pool's similarities: strips of queries against pieces of keys, and what of a tile is no negative."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.alignment.pool import Pool


class Strip(NamedTuple):
    """Some queries of the pool with all keys that they are compared with here."""

    rows: slice
    queries: Tensor  # (rows, E) wide
    keys: slice
    excludes: Tensor  # (K,) bool: some entry of this key's column is no negative
    for_queries: bool  # this rank answers for the queries
    for_keys: bool  # and for the keys


class Tile(NamedTuple):
    """Some keys of a strip."""

    columns: slice
    keys: Tensor  # (columns, E) wide
    excluded: Tensor | None  # (rows, columns) bool: no negative; None: all are
    positives: tuple[Tensor, Tensor] | None  # rows and columns, within the tile, of the positives in it


class Room:
    """Memory for one tile at a time, used again for the next: fresh pages would cost more than the arithmetic."""

    def __init__(self, tile: tuple[int, int], like: Tensor) -> None:
        """``tile`` is the largest; the dtype and device are those of ``like``."""
        self._entries = tile[0] * tile[1]
        self._like = like
        self._slots: dict[str | int, Tensor] = {}

    def __call__(self, slot: str | int, rows: int, columns: int) -> Tensor:
        """Return the contiguous (rows, columns) of ``slot``; what it holds is left from its last use."""
        if slot not in self._slots:
            self._slots[slot] = self._like.new_empty(self._entries)
        return self._slots[slot][: rows * columns].view(rows, columns)


class Band(NamedTuple):
    """What of a pool's similarities this rank makes."""

    queries: slice
    keys: slice
    for_queries: bool  # this rank answers for the queries
    for_keys: bool  # and for the keys


def bands(pool: Pool) -> list[Band]:
    """All of them in one process; over ranks own queries with all keys, and all queries with own keys."""
    queries, keys = slice(0, len(pool.queries)), slice(0, len(pool.keys))
    if len(pool.lengths) == 1:
        return [Band(queries, keys, True, True)]
    return [Band(pool.own_queries, keys, True, False), Band(queries, pool.own_keys, False, True)]


def strips(pool: Pool, height: int, wide: torch.dtype) -> Iterator[Strip]:
    """Yield the strips that hold this rank's rows and columns."""
    names, numbers = torch.cat([pool.query_groups, pool.key_groups]).unique(return_inverse=True)
    query_groups, key_groups = numbers.split([len(pool.queries), len(pool.keys)])
    for queries, keys, for_queries, for_keys in bands(pool):
        for rows in pieces(queries, height):
            met = torch.zeros_like(names, dtype=torch.bool)
            met[query_groups[rows]] = True
            excludes = met[key_groups]
            excludes[pool.positives[rows]] = True
            yield Strip(rows, pool.queries[rows].to(wide), keys, excludes, for_queries, for_keys)


def tiles(pool: Pool, strip: Strip, width: int, wide: torch.dtype) -> Iterator[Tile]:
    """Yield the tiles of ``strip``. Most of a large pool's hold negatives only, and are spared the masks."""
    positives = pool.positives[strip.rows]
    for columns in pieces(strip.keys, width):
        excluded = of_positives = None
        some = strip.excludes[columns].nonzero()[:, 0]
        if len(some):
            numbers = some + columns.start
            same = pool.query_groups[strip.rows, None] == pool.key_groups[numbers]
            same |= positives[:, None] == numbers
            excluded = same.new_zeros((len(positives), columns.stop - columns.start)).index_copy_(
                1, some, same
            )
            (inside,) = ((positives >= columns.start) & (positives < columns.stop)).nonzero(as_tuple=True)
            of_positives = inside, positives[inside] - columns.start
        yield Tile(columns, pool.keys[columns].to(wide), excluded, of_positives)


@contextmanager
def exact_products(vectors: Tensor) -> Iterator[None]:
    """Let the processor's bfloat16 units multiply float32 copies of bfloat16 ``vectors``: nothing of them is lost.

    Sums stay float32. Of what such vectors are multiplied with in the second pass, dS, the same is rounded to
    bfloat16 that a GPU kernel would round. Elsewhere, and for other dtypes, products are what they are.
    """
    if vectors.dtype != torch.bfloat16 or vectors.device.type != "cpu":
        yield
        return
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def pieces(whole: slice, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``whole``."""
    for start in range(whole.start, whole.stop, size):
        yield slice(start, min(start + size, whole.stop))
