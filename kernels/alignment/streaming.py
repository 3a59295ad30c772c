"""The alignment loss in tiles of the similarities, never the whole of them: torch operations, written in place.

One process visits every tile once per pass and serves both directions from it: four matrix products. With
ranks, a rank's queries need all keys and its keys need all queries: two bands of tiles, six products. All
prefixes come from one pass over the coordinates: a tile's products are added up chunk by chunk, and are the
similarities of a prefix (but for its lengths) when its last chunk is in.

One exponential serves both directions, exp(S - c) with one c for the tile: rows and columns need it times
exp(c - L) each. That is exact as long as nothing that counts is flushed to zero, which shows in the sums
(pass 1) or in the logarithms (pass 2); a tile where it would be takes an exponential for each direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.alignment.pool import Pool
from kernels.alignment.prefixes import Prefixes, turn
from kernels.alignment.solution import Gradients, Negatives
from kernels.alignment.tiles import Room, Strip, Tile, exact_products, strips, tiles

TILE = (1024, 1024)  # queries and keys; the tile and its temporaries then stay near the processor
_LOWEST = -1e30  # stands for -inf where a difference is taken
# Natural logarithms. float32 flushes exp below -87, so within these ranges what is lost is below 1e-17 of a sum.
_SUM_IN_RANGE = -36.0
_LOGARITHMS_APART = 60.0


class Streaming(NamedTuple):
    """The two passes of kernels/alignment/solution.py; beyond the gradients they hold a few tiles."""

    tile: tuple[int, int] = TILE

    def negatives(self, pool: Pool, prefixes: Prefixes, scale: Tensor) -> Negatives:
        """Pass 1: the logsumexp of every tile, joined."""
        rows = scale.new_full((len(pool.queries), len(prefixes.widths)), -torch.inf)
        columns = scale.new_full((len(pool.keys), len(prefixes.widths)), -torch.inf)
        closest = scale.new_full((len(pool.queries),), -torch.inf)
        room, factor = Room(self.tile, scale), float(scale)
        with exact_products(pool.queries):
            for strip in strips(pool, self.tile[0], scale.dtype):
                i = strip.rows
                for tile in tiles(pool, strip, self.tile[1], scale.dtype):
                    j = tile.columns
                    for p in range(len(prefixes.widths)):
                        cosines = _cosines(p, prefixes, strip, tile, room)
                        highest = cosines.amax(1).mul_(scale)
                        of_rows, of_columns = _logsumexp(cosines, factor, highest, tile, room)
                        if strip.for_queries:
                            rows[i, p] = rows[i, p].logaddexp(of_rows)
                        if strip.for_keys:
                            columns[j, p] = columns[j, p].logaddexp(of_columns)
                    if strip.for_queries:
                        closest[i] = closest[i].maximum(highest)
        return Negatives(rows[pool.own_queries], columns[pool.own_keys], closest[pool.own_queries])

    def gradients(
        self, pool: Pool, prefixes: Prefixes, scale: Tensor, query_terms: Tensor, key_terms: Tensor
    ) -> Gradients:
        """Pass 2: dS of every tile, multiplied with the tile's keys and with its queries."""
        of_queries = torch.zeros_like(pool.queries[pool.own_queries])
        of_keys = torch.zeros_like(pool.keys[pool.own_keys], dtype=scale.dtype)
        key_turn = scale.new_zeros((len(of_keys), len(prefixes.widths)))
        along = torch.zeros_like(scale)
        room, factor = Room(self.tile, scale), float(scale)
        with exact_products(pool.queries):
            for strip in strips(pool, self.tile[0], scale.dtype):
                of_strip = torch.zeros_like(strip.queries)
                query_turn = scale.new_zeros((len(of_strip), len(prefixes.widths)))
                for tile in tiles(pool, strip, self.tile[1], scale.dtype):
                    own = slice(tile.columns.start - strip.keys.start, tile.columns.stop - strip.keys.start)
                    pulls = []
                    for p in range(len(prefixes.widths)):
                        cosines = _cosines(p, prefixes, strip, tile, room)
                        terms = query_terms[strip.rows, p], key_terms[tile.columns, p]
                        pull = _pull(cosines, factor, *terms, tile, room)
                        if prefixes.of_queries is not None:
                            turned = _with_lengths(pull, p, prefixes, strip, tile, room)
                            query_turn[:, p] += turned.sum(1)
                            if strip.for_keys:
                                key_turn[own, p] += turned.sum(0)
                        pulls.append(pull)
                    # A chunk is part of its own prefix and of every longer one.
                    for p in reversed(range(len(pulls))):
                        chunk = prefixes.chunk(p)
                        pull = pulls[p] if p + 1 == len(pulls) else pulls[p].add_(pulls[p + 1])
                        if strip.for_queries:
                            of_strip[:, chunk].addmm_(pull, tile.keys[:, chunk])
                        if strip.for_keys:
                            of_keys[own, chunk].addmm_(pull.T, strip.queries[:, chunk])
                if strip.for_queries:
                    if prefixes.of_queries is None:
                        along += (of_strip * strip.queries).sum()
                    else:
                        along += query_turn.sum()
                        lengths = prefixes.of_queries[strip.rows]
                        turn(of_strip, query_turn * lengths.square(), strip.queries, prefixes)
                    first = strip.rows.start - pool.own_queries.start
                    of_queries[first : first + len(of_strip)] = of_strip.mul_(scale)
        if prefixes.of_keys is not None:
            lengths = prefixes.of_keys[pool.own_keys]
            turn(of_keys, key_turn * lengths.square(), pool.keys[pool.own_keys], prefixes)
        return Gradients(of_queries, of_keys.mul_(scale).to(pool.keys.dtype), along * scale)


def _cosines(p: int, prefixes: Prefixes, strip: Strip, tile: Tile, room: Room) -> Tensor:
    """Return z / s of prefix ``p`` in a tile, -inf where an entry is no negative; prefixes are asked for in order."""
    chunk = prefixes.chunk(p)
    cosines = products = room("products", len(strip.queries), len(tile.keys))
    if p == 0:
        torch.mm(strip.queries[:, chunk], tile.keys[:, chunk].T, out=products)
    else:
        products.addmm_(strip.queries[:, chunk], tile.keys[:, chunk].T)
    if prefixes.of_queries is not None and prefixes.of_keys is not None:
        lengths = prefixes.of_queries[strip.rows, p, None]
        cosines = torch.mul(products, lengths, out=room(p, *products.shape)).mul_(
            prefixes.of_keys[tile.columns, p]
        )
    return cosines if tile.excluded is None else cosines.masked_fill_(tile.excluded, -torch.inf)


def _logsumexp(
    cosines: Tensor, factor: float, highest: Tensor, tile: Tile, room: Room
) -> tuple[Tensor, Tensor]:
    """Return the logsumexp of rows and of columns; ``highest`` (rows,) are the largest logits of the rows."""
    c = highest.max().clamp_min(_LOWEST)
    shared = torch.add(-c, cosines, alpha=factor, out=room("shared", *cosines.shape)).exp_()
    of_rows, of_columns = shared.sum(1).log_(), shared.sum(0).log_()
    # Without negatives a sum is rightly 0; anywhere else so small a sum has lost some of its terms.
    summed = [of_rows, of_columns]
    if tile.excluded is not None:
        summed = [
            of_rows.masked_fill(highest == -torch.inf, 0.0),
            of_columns.masked_fill(tile.excluded.all(0), 0.0),
        ]
    if torch.cat(summed).min() < _SUM_IN_RANGE:
        logits = cosines.mul_(factor)
        return logits.logsumexp(1), logits.logsumexp(0)
    return of_rows.add_(c), of_columns.add_(c)


def _pull(
    cosines: Tensor, factor: float, query_terms: Tensor, key_terms: Tensor, tile: Tile, room: Room
) -> Tensor:
    """Return dS of a tile, in the place of its ``cosines``; terms are (rows or columns, 3)."""
    row_logarithm, row_weight, of_positive = query_terms.unbind(1)
    column_logarithm, column_weight, _ = key_terms.unbind(1)
    # A key without a query has L = inf and weight 0: as a column it has no loss.
    paired = column_logarithm.masked_fill(column_logarithm == torch.inf, row_logarithm[0])
    least, most = torch.cat([row_logarithm, paired]).aminmax()
    spare = room("shared", *cosines.shape)
    if most - least <= _LOGARITHMS_APART:
        c = (most + least) / 2
        of_rows = row_weight * (c - row_logarithm).exp_()
        of_columns = column_weight * (c - column_logarithm).exp_()
        pull = torch.add(-c, cosines, alpha=factor, out=cosines).exp_()
        pull.mul_(torch.add(of_rows[:, None], of_columns, out=spare))
    else:
        by_row = torch.add(-row_logarithm[:, None], cosines, alpha=factor, out=spare).exp_()
        by_row.mul_(row_weight[:, None])
        pull = torch.add(-column_logarithm, cosines, alpha=factor, out=cosines).exp_()
        pull.mul_(column_weight).add_(by_row)
    if tile.positives is not None:
        rows, columns = tile.positives
        pull[rows, columns] = of_positive[rows]
    return pull


def _with_lengths(pull: Tensor, p: int, prefixes: Prefixes, strip: Strip, tile: Tile, room: Room) -> Tensor:
    """Multiply ``pull`` by both lengths, in place; return it times the products: dS_ij z_ij / s."""
    assert prefixes.of_queries is not None and prefixes.of_keys is not None
    pull.mul_(prefixes.of_queries[strip.rows, p, None]).mul_(prefixes.of_keys[tile.columns, p])
    return torch.mul(pull, room("products", *pull.shape), out=room("shared", *pull.shape))
