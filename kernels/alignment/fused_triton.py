"""The two passes of the alignment loss on a GPU: torch's products, and what is between them as two Triton kernels.

The similarities are made a large tile at a time, and a tile serves both directions, as in streaming.py. With the
products <q_i, k_j> of a tile, in float32, r = 1 / length of a vector's prefix, or 1:

    z_ij = s r_i r_j <q_i, k_j>
    know            n_i = log sum_j exp(z_ij), n_j = log sum_i exp(z_ij), of negatives; the largest z_ij of a row
    differentiate   d_ij = w_i exp(z_ij - L_i) + w_j exp(z_ij - L_j), the positive's is its pull, 0 within a group
                    e_ij = s r_i r_j d_ij, rounded: what the vectors are multiplied with
                    t_i = sum_j d_ij z_ij        u_i = sum_j e_ij <q_i, k_j>, u_j = sum_i e_ij <q_i, k_j>
                    dq_i = sum_j e_ij k_j - r_i^2 u_i q_i        dk_j = sum_i e_ij q_i - r_j^2 u_j k_j

A kernel that made z itself and kept it on the chip was half as fast on an H200: dq and dk are as wide as the vectors,
so that nothing of them stays on the chip, and a product of torch's runs at twice the rate. e is bfloat16 where the
vectors are; float16, whose range is too short for it, is widened for the last two products. A program has a block of
the tile, its sums are put together by torch in a fixed order: a repetition is bitwise the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.alignment.pool import Pool
from kernels.alignment.prefixes import Prefixes, turn
from kernels.alignment.solution import Gradients, Negatives
from kernels.alignment.tiles import bands, pieces

if TYPE_CHECKING:
    from kernels.aot import AotVariant

TILE = 8192  # queries and keys: 256 MiB of products
KEPT_BYTES = 512 * 2**20  # of products that are not made twice, where these are all that there are
BLOCK = (32, 128)  # of a program
WARPS = 4


@triton.jit
def _block(
    products, query_group, key_group, query_name, key_name, query_length, key_length, scale,
    queries, keys, products_row, LENGTHS: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows, columns, <q, k>, what it is multiplied with, whether it is there; groups and names of both sides.

    A query has the name of its positive key.
    """
    i = tl.program_id(0) * BQ + tl.arange(0, BQ)
    j = tl.program_id(1) * BK + tl.arange(0, BK)
    inside = (i < queries)[:, None] & (j < keys)[None, :]
    product = tl.load(products + i.to(tl.int64)[:, None] * products_row + j[None, :], mask=inside, other=0.0)
    factor = tl.load(scale)
    if LENGTHS:
        factor *= tl.load(query_length + i, mask=i < queries, other=0.0)[:, None]
        factor *= tl.load(key_length + j, mask=j < keys, other=0.0)[None, :]
    group = tl.load(query_group + i, mask=i < queries, other=0)
    name = tl.load(query_name + i, mask=i < queries, other=0)
    other_group = tl.load(key_group + j, mask=j < keys, other=0)
    other_name = tl.load(key_name + j, mask=j < keys, other=0)
    return i, j, product, factor, inside, group, name, other_group, other_name


@triton.jit
def know_kernel(
    products, query_group, key_group, query_name, key_name, query_length, key_length, scale,
    of_queries, of_keys, largest, queries, keys, products_row,
    LENGTHS: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """of_queries, largest (blocks of keys, queries) and of_keys (blocks of queries, keys)."""
    i, j, product, factor, inside, group, name, other_group, other_name = _block(
        products, query_group, key_group, query_name, key_name, query_length, key_length, scale,
        queries, keys, products_row, LENGTHS, BQ, BK,
    )  # fmt: skip
    negative = inside & (group[:, None] != other_group[None, :]) & (name[:, None] != other_name[None, :])
    z = tl.where(negative, product * factor, float("-inf"))
    highest = tl.max(z, 1)
    total = tl.sum(tl.exp(z - tl.where(highest == float("-inf"), 0.0, highest)[:, None]), 1)
    at = tl.program_id(1).to(tl.int64) * queries + i
    tl.store(of_queries + at, highest + tl.log(tl.maximum(total, 1.0)), mask=i < queries)
    tl.store(largest + at, highest, mask=i < queries)
    highest = tl.max(z, 0)
    total = tl.sum(tl.exp(z - tl.where(highest == float("-inf"), 0.0, highest)[None, :]), 0)
    at = tl.program_id(0).to(tl.int64) * keys + j
    tl.store(of_keys + at, highest + tl.log(tl.maximum(total, 1.0)), mask=j < keys)


@triton.jit
def differentiate_kernel(
    products, query_group, key_group, query_name, key_name, query_length, key_length, query_terms, key_terms, scale,
    out, along, of_queries, of_keys, queries, keys, products_row,
    LENGTHS: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out (queries, keys) = e; along (blocks of keys, queries) t; of_queries, of_keys as there: u.

    Terms (3, queries or keys) are L, weight / 2 and the pull of the positive.
    """
    i, j, product, factor, inside, group, name, other_group, other_name = _block(
        products, query_group, key_group, query_name, key_name, query_length, key_length, scale,
        queries, keys, products_row, LENGTHS, BQ, BK,
    )  # fmt: skip
    logarithm = tl.load(query_terms + i, mask=i < queries, other=0.0)
    weight = tl.load(query_terms + queries + i, mask=i < queries, other=0.0)
    pull = tl.load(query_terms + 2 * queries + i, mask=i < queries, other=0.0)
    other_logarithm = tl.load(key_terms + j, mask=j < keys, other=0.0)
    other_weight = tl.load(key_terms + keys + j, mask=j < keys, other=0.0)
    z = product * factor
    d = weight[:, None] * tl.exp(z - logarithm[:, None])
    d += other_weight[None, :] * tl.exp(z - other_logarithm[None, :])
    d = tl.where(group[:, None] == other_group[None, :], 0.0, d)
    d = tl.where(name[:, None] == other_name[None, :], pull[:, None], d)
    d = tl.where(inside, d, 0.0)
    e = (d * factor).to(out.dtype.element_ty)
    tl.store(out + i.to(tl.int64)[:, None] * keys + j[None, :], e, mask=inside)
    at = tl.program_id(1).to(tl.int64) * queries + i
    tl.store(along + at, tl.sum(d * z, 1), mask=i < queries)
    if LENGTHS:  # from what is multiplied: what a gradient has along its vector then goes away whole
        turned = e.to(tl.float32) * product
        tl.store(of_queries + at, tl.sum(turned, 1), mask=i < queries)
        tl.store(of_keys + tl.program_id(0).to(tl.int64) * keys + j, tl.sum(turned, 0), mask=j < keys)


class _Strip(NamedTuple):
    """Some keys of the pool, and the queries that they are compared with here, in pieces."""

    keys: slice
    queries: list[slice]
    for_queries: bool  # this rank answers for the queries
    for_keys: bool  # and for the keys


class Fused:
    """The two passes of kernels/alignment/solution.py, the second after the first of the same pool."""

    def __init__(self, tile: int = TILE, kept_bytes: int = KEPT_BYTES) -> None:
        self._tile, self._kept_bytes = tile, kept_bytes
        self._kept: dict[tuple[int, ...], Tensor] = {}  # products of a tile, by its bounds

    def negatives(self, pool: Pool, prefixes: Prefixes, scale: Tensor) -> Negatives:
        """Pass 1: the logarithms of every tile, joined."""
        several = len(prefixes.widths)
        rows = scale.new_full((several, len(pool.queries)), -torch.inf)
        columns = scale.new_full((several, len(pool.keys)), -torch.inf)
        closest = scale.new_full((len(pool.queries),), -torch.inf)
        names = _names_of(pool)
        strips = self._strips(pool)
        entries = sum(
            len(pool.keys[strip.keys]) * len(pool.queries[i]) for strip in strips for i in strip.queries
        )
        keeps = several == 1 and 4 * entries <= self._kept_bytes
        self._kept = {}
        for strip in strips:
            j = strip.keys
            for i in strip.queries:
                for p, products in self._products(pool, prefixes, i, j):
                    of_rows, of_columns, highest = know(products, names, prefixes, p, scale, i, j)
                    if strip.for_queries:
                        rows[p, i] = rows[p, i].logaddexp(of_rows)
                        closest[i] = closest[i].maximum(highest) if p + 1 == several else closest[i]
                    if strip.for_keys:
                        columns[p, j] = columns[p, j].logaddexp(of_columns)
                    if keeps:
                        self._kept[i.start, i.stop, j.start, j.stop] = products
        own = pool.own_queries
        return Negatives(rows[:, own].T, columns[:, pool.own_keys].T, closest[own])

    def gradients(
        self, pool: Pool, prefixes: Prefixes, scale: Tensor, query_terms: Tensor, key_terms: Tensor
    ) -> Gradients:
        """Pass 2: e of every tile, multiplied with the tile's keys and with its queries."""
        several, first, first_key = len(prefixes.widths), pool.own_queries.start, pool.own_keys.start
        narrow = torch.bfloat16 if pool.queries.dtype == torch.bfloat16 else torch.float32
        of_queries = torch.zeros_like(pool.queries[pool.own_queries], dtype=torch.float32)
        of_keys = torch.zeros_like(pool.keys[pool.own_keys])
        query_turn = scale.new_zeros((len(of_queries), several))
        along = torch.zeros_like(scale)
        terms = query_terms.permute(1, 2, 0), key_terms.permute(1, 2, 0)
        names = _names_of(pool)
        for strip in self._strips(pool):
            j = strip.keys
            keys, own_keys = pool.keys[j].to(narrow), slice(j.start - first_key, j.stop - first_key)
            of_strip = torch.zeros_like(keys, dtype=torch.float32)
            key_turn = scale.new_zeros((len(keys), several))
            for i in strip.queries:
                queries, own = pool.queries[i].to(narrow), slice(i.start - first, i.stop - first)
                for p, products in self._products(pool, prefixes, i, j):
                    difference, turned, of_key, part = differentiate(
                        products, names, prefixes, p, scale, terms, i, j, narrow
                    )
                    width = prefixes.widths[p]
                    if strip.for_queries:
                        of_queries[own, :width] += _product(difference, keys[:, :width])
                        query_turn[own, p] += turned
                        along += part.sum()
                    if strip.for_keys:
                        of_strip[:, :width] += _product(difference.T, queries[:, :width])
                        key_turn[:, p] += of_key
            if strip.for_keys:
                if prefixes.of_keys is not None:
                    turn(of_strip, key_turn * prefixes.of_keys[j].square(), pool.keys[j], prefixes)
                of_keys[own_keys] = of_strip
        if prefixes.of_queries is not None:
            own = pool.own_queries
            turn(of_queries, query_turn * prefixes.of_queries[own].square(), pool.queries[own], prefixes)
        self._kept = {}
        return Gradients(of_queries.to(pool.queries.dtype), of_keys, along)

    def _strips(self, pool: Pool) -> list[_Strip]:
        return [
            _Strip(j, list(pieces(band.queries, self._tile)), band.for_queries, band.for_keys)
            for band in bands(pool)
            for j in pieces(band.keys, self._tile)
        ]

    def _products(self, pool: Pool, prefixes: Prefixes, i: slice, j: slice) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each prefix and its products (queries, keys), float32; the next overwrites them."""
        kept = self._kept.get((i.start, i.stop, j.start, j.stop))
        if kept is not None:
            yield 0, kept
            return
        products: Tensor | None = None
        for p in range(len(prefixes.widths)):
            chunk = prefixes.chunk(p)
            more = _product(pool.queries[i, chunk], pool.keys[j, chunk].T)
            products = more if products is None else products.add_(more)
            yield p, products


class _Names(NamedTuple):
    """Numbers that are equal where groups are, and names of queries' positives and of keys."""

    query_groups: Tensor
    key_groups: Tensor
    positives: Tensor
    keys: Tensor


def _names_of(pool: Pool) -> _Names:
    names = torch.arange(len(pool.keys), device=pool.keys.device)
    return _Names(
        *(column.contiguous() for column in (pool.query_groups, pool.key_groups, pool.positives, names))
    )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """In float32, as it is summed."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def know(
    products: Tensor, names: _Names, prefixes: Prefixes, p: int, scale: Tensor, i: slice, j: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch ``know_kernel``: n of the queries i (rows,) and of the keys j (columns,), and the largest z (rows,)."""
    (queries, keys), blocks = products.shape, _blocks(products)
    of_queries, largest = (scale.new_empty((blocks[1], queries)) for _ in range(2))
    of_keys = scale.new_empty((blocks[0], keys))
    know_kernel[blocks](
        products, *_arguments(names, prefixes, p, scale, i, j), scale, of_queries, of_keys, largest,
        queries, keys, products.stride(0), prefixes.of_queries is not None, *BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return of_queries.logsumexp(0), of_keys.logsumexp(0), largest.amax(0)


def differentiate(
    products: Tensor,
    names: _Names,
    prefixes: Prefixes,
    p: int,
    scale: Tensor,
    terms: tuple[Tensor, Tensor],
    i: slice,
    j: slice,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | float, Tensor | float, Tensor]:
    """Launch ``differentiate_kernel``: e (queries, keys) of ``dtype``, u of rows and of columns, parts of t."""
    (queries, keys), blocks = products.shape, _blocks(products)
    out = torch.empty_like(products, dtype=dtype)
    along, of_queries = (scale.new_empty((blocks[1], queries)) for _ in range(2))
    of_keys = scale.new_empty((blocks[0], keys))
    of_terms = terms[0][p, :, i].contiguous(), terms[1][p, :, j].contiguous()
    lengths = prefixes.of_queries is not None
    differentiate_kernel[blocks](
        products, *_arguments(names, prefixes, p, scale, i, j), *of_terms, scale, out, along, of_queries, of_keys,
        queries, keys, products.stride(0), lengths, *BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return out, of_queries.sum(0) if lengths else 0.0, of_keys.sum(0) if lengths else 0.0, along


def _blocks(products: Tensor) -> tuple[int, int]:
    return triton.cdiv(len(products), BLOCK[0]), triton.cdiv(products.shape[1], BLOCK[1])


def _arguments(
    names: _Names, prefixes: Prefixes, p: int, scale: Tensor, i: slice, j: slice
) -> tuple[Tensor, ...]:
    """Groups, names and lengths of the tile, as both kernels take them."""
    lengths = [
        scale if side is None else side[some, p].contiguous()
        for side, some in ((prefixes.of_queries, i), (prefixes.of_keys, j))
    ]
    return (names.query_groups[i], names.key_groups[j], names.positives[i], names.keys[j], *lengths)


def aot_variants() -> Iterator[AotVariant]:
    """Both kernels, with and without lengths, for tiles whose rows begin where wide loads can."""
    from kernels.aot import AotVariant

    kinds = dict.fromkeys(("query_group", "key_group", "query_name", "key_name"), "*i64")
    kinds |= dict.fromkeys(("queries", "keys", "products_row"), "i32")
    for kernel in (know_kernel, differentiate_kernel):
        for dtype in ("bf16", "fp32") if kernel is differentiate_kernel else ("fp32",):
            for lengths in (False, True):
                constants: dict[str, Any] = {"LENGTHS": lengths, "BQ": BLOCK[0], "BK": BLOCK[1]}
                of = {**kinds, **dict.fromkeys(constants, "constexpr"), "out": f"*{dtype}"}
                signature = {name: of.get(name, "*fp32") for name in kernel.arg_names}
                aligned = [name for name, kind in signature.items() if kind != "constexpr"]
                parts = [kernel.__name__.removesuffix("_kernel"), dtype, *(["lengths"] * lengths)]
                yield AotVariant("_".join(parts), kernel, signature, constants, tuple(aligned), WARPS)
