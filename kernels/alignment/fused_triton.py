"""The two passes of the alignment loss on a GPU: the similarities never leave the processors that make them.

One kernel per pass serves both directions, with queries as x and keys as y, and the other way round. x are the rows
that this rank answers for, y all rows of the other side. A query has the name of its positive key, a key its own:

    z_ij = s r_i r_j <x_i, y_j>                  r = 1 / length of the prefix, or 1
    negative(i, j) = group_i != group_j and name_i != name_j       positive(i, j) = name_i == name_j

    pass 1   n_i  = log sum_{j negative} exp(z_ij)                       with a running maximum
    pass 2   d_ij = w_i exp(z_ij - L_i) + w_j exp(z_ij - L_j)            negatives
             d_ij = pull_i                                               the positive
             t_i  = sum_j d_ij z_ij
             dx_i = s r_i sum_j d_ij r_j y_j - r_i^2 t_i x_i             the last term only where lengths are taken

Products of bfloat16 are summed in float32; those of float32 are made of three tf32 products, as exact as float32.
d is rounded to bfloat16 for its product with bfloat16 y, and to tf32 for float16, whose range is too short for it.
Every program owns what it writes, (rows, chunk of coordinates), and goes through y in order: nothing is added by
two programs, so a repetition is bitwise the same. In pass 2 a program holds one chunk of dx; each chunk makes z again.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.alignment.pool import Pool
from kernels.alignment.prefixes import Prefixes
from kernels.alignment.solution import Gradients, Negatives
from kernels.aot import AotVariant

# Triton's interpreter computes garbage with bfloat16; as float32 the same values give what a GPU's units give.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _factor(tile):
    """What tl.dot may be given."""
    if _INTERPRETED and tile.dtype == tl.bfloat16:
        return tile.to(tl.float32)
    return tile


@triton.jit
def _similarities(
    x, y, rows, columns, x_length, y_length, scale, x_rows, y_rows, width,
    x_row, x_column, y_row, y_column,
    LENGTHS: tl.constexpr, PRECISION: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """z (BX, BY) of rows and columns; 0 beyond the last."""
    z = tl.zeros((BX, BY), dtype=tl.float32)
    for start in range(0, width, BE):
        chunk = (start + tl.arange(0, BE)).to(tl.int64)
        x_tile = tl.load(
            x + rows[:, None] * x_row + chunk[None, :] * x_column,
            mask=(rows[:, None] < x_rows) & (chunk[None, :] < width),
            other=0.0,
        )
        y_tile = tl.load(
            y + columns[None, :] * y_row + chunk[:, None] * y_column,
            mask=(columns[None, :] < y_rows) & (chunk[:, None] < width),
            other=0.0,
        )
        z = tl.dot(_factor(x_tile), _factor(y_tile), z, input_precision=PRECISION)
    z *= tl.load(scale)
    if LENGTHS:
        z *= tl.load(x_length + rows, mask=rows < x_rows, other=0.0)[:, None]
        z *= tl.load(y_length + columns, mask=columns < y_rows, other=0.0)[None, :]
    return z


@triton.jit
def _negatives_kernel(
    x, y, x_group, y_group, x_name, y_name, x_length, y_length, scale, logsumexp, largest,
    x_rows, y_rows, width, x_row, x_column, y_row, y_column,
    LENGTHS: tl.constexpr, PRECISION: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Pass 1: n and the largest z of BX rows, over all y."""
    rows = tl.program_id(0).to(tl.int64) * BX + tl.arange(0, BX)
    group = tl.load(x_group + rows, mask=rows < x_rows, other=0)
    name = tl.load(x_name + rows, mask=rows < x_rows, other=0)
    highest = tl.full((BX,), float("-inf"), tl.float32)
    total = tl.zeros((BX,), tl.float32)
    for start in range(0, y_rows, BY):
        columns = (start + tl.arange(0, BY)).to(tl.int64)
        z = _similarities(
            x, y, rows, columns, x_length, y_length, scale, x_rows, y_rows, width,
            x_row, x_column, y_row, y_column, LENGTHS, PRECISION, BX, BY, BE,
        )  # fmt: skip
        here = columns < y_rows
        negative = group[:, None] != tl.load(y_group + columns, mask=here, other=0)[None, :]
        negative &= name[:, None] != tl.load(y_name + columns, mask=here, other=0)[None, :]
        z = tl.where(negative & here[None, :], z, float("-inf"))
        higher = tl.maximum(highest, tl.max(z, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - finite) + tl.sum(tl.exp(z - finite[:, None]), 1)
        highest = higher
    tl.store(logsumexp + rows, highest + tl.log(tl.maximum(total, 1.0)), mask=rows < x_rows)
    tl.store(largest + rows, highest, mask=rows < x_rows)


@triton.jit
def _gradients_kernel(
    x, y, x_group, y_group, x_name, y_name, x_length, y_length, x_terms, y_terms, scale, gradient, along,
    x_rows, y_rows, width, x_row, x_column, y_row, y_column, gradient_row,
    LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
    BX: tl.constexpr, BY: tl.constexpr, BE: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Pass 2: BO coordinates of dx of BX rows are added to ``gradient``; t into ``along``."""
    rows = tl.program_id(0).to(tl.int64) * BX + tl.arange(0, BX)
    out = (tl.program_id(1) * BO + tl.arange(0, BO)).to(tl.int64)
    row_here = rows < x_rows
    group = tl.load(x_group + rows, mask=row_here, other=0)
    name = tl.load(x_name + rows, mask=row_here, other=0)
    logarithm = tl.load(x_terms + 3 * rows, mask=row_here, other=0.0)
    weight = tl.load(x_terms + 3 * rows + 1, mask=row_here, other=0.0)
    pull = tl.load(x_terms + 3 * rows + 2, mask=row_here, other=0.0)
    total = tl.zeros((BX,), tl.float32)
    turned = tl.zeros((BX,), tl.float32)
    dx = tl.zeros((BX, BO), tl.float32)
    for start in range(0, y_rows, BY):
        columns = (start + tl.arange(0, BY)).to(tl.int64)
        z = _similarities(
            x, y, rows, columns, x_length, y_length, scale, x_rows, y_rows, width,
            x_row, x_column, y_row, y_column, LENGTHS, PRECISION, BX, BY, BE,
        )  # fmt: skip
        here = columns < y_rows
        y_logarithm = tl.load(y_terms + 3 * columns, mask=here, other=0.0)
        y_weight = tl.load(y_terms + 3 * columns + 1, mask=here, other=0.0)
        d = weight[:, None] * tl.exp(z - logarithm[:, None]) + y_weight[None, :] * tl.exp(
            z - y_logarithm[None, :]
        )
        same_group = group[:, None] == tl.load(y_group + columns, mask=here, other=0)[None, :]
        positive = name[:, None] == tl.load(y_name + columns, mask=here, other=0)[None, :]
        d = tl.where(positive, pull[:, None], tl.where(same_group, 0.0, d))
        d = tl.where(here[None, :], d, 0.0)
        total += tl.sum(d * z, 1)
        if LENGTHS:  # t from the d that is multiplied: what dx has along x then goes away whole
            length_of_y = tl.load(y_length + columns, mask=here, other=1.0)[None, :]
            d *= length_of_y
            if y.dtype.element_ty == tl.bfloat16:
                d = d.to(tl.bfloat16).to(tl.float32)
            turned += tl.sum(d * (z / length_of_y), 1)
        y_out = tl.load(
            y + columns[:, None] * y_row + out[None, :] * y_column,
            mask=here[:, None] & (out[None, :] < width),
            other=0.0,
        )
        if y_out.dtype == tl.bfloat16:
            dx = tl.dot(_factor(d.to(tl.bfloat16)), _factor(y_out), dx)
        elif y_out.dtype == tl.float16:
            dx = tl.dot(
                d, y_out.to(tl.float32), dx, input_precision="ieee" if PRECISION == "ieee" else "tf32"
            )
        else:
            dx = tl.dot(d, y_out, dx, input_precision=PRECISION)
    dx *= tl.load(scale)
    inside = row_here[:, None] & (out[None, :] < width)
    if LENGTHS:
        length = tl.load(x_length + rows, mask=row_here, other=0.0)
        own = tl.load(x + rows[:, None] * x_row + out[None, :] * x_column, mask=inside, other=0.0)
        dx = dx * length[:, None] - (length * length * turned)[:, None] * own.to(tl.float32)
    at = gradient + rows[:, None] * gradient_row + out[None, :]
    tl.store(at, dx + tl.load(at, mask=inside, other=0.0), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(along + rows, total, mask=row_here)


class _Launch(NamedTuple):
    """How much a program takes at a time."""

    rows: int
    columns: int
    coordinates: int
    out: int  # coordinates of dx that a program holds
    warps: int
    stages: int


# Chosen so that nothing is spilled on sm_80, sm_90, sm_100 and gfx942: kernels/resource_budget.json has the figures.
_NEGATIVES = {
    2: _Launch(128, 128, 64, 0, 8, 3),
    4: _Launch(64, 64, 32, 0, 4, 3),
}  # bytes of an input -> launch
_GRADIENTS = {2: _Launch(64, 32, 64, 256, 8, 2), 4: _Launch(64, 32, 32, 128, 8, 2)}


class Fused(NamedTuple):
    """The two passes of kernels/alignment/solution.py."""

    launch: tuple[int, ...] | None = None  # rows, columns, coordinates, out, warps, stages; None: by dtype

    def negatives(self, pool: Pool, prefixes: Prefixes, scale: Tensor) -> Negatives:
        """Pass 1 of own queries over all keys, then of own keys over all queries; the gathered pool is read only."""
        launch = list(self.launch or _NEGATIVES[min(4, pool.queries.element_size())])
        found = []
        for own, x, y in _sides(pool, prefixes):
            of_prefixes = [
                alignment_negatives(*_vectors(own, x, y, p), scale, width, launch)
                for p, width in enumerate(prefixes.widths)
            ]
            found.append(of_prefixes)
        rows, columns = (torch.stack([logsumexp for logsumexp, _ in side], 1) for side in found)
        return Negatives(rows, columns, found[0][-1][1])

    def gradients(
        self, pool: Pool, prefixes: Prefixes, scale: Tensor, query_terms: Tensor, key_terms: Tensor
    ) -> Gradients:
        """Pass 2 of own queries, then of own keys."""
        launch = list(self.launch or _GRADIENTS[min(4, pool.queries.element_size())])
        made: list[Tensor] = []
        along = torch.zeros_like(scale)
        for (own, x, y), terms in zip(
            _sides(pool, prefixes), ((query_terms, key_terms), (key_terms, query_terms)), strict=True
        ):
            gradient = torch.zeros_like(
                x.vectors[own], dtype=torch.float32, memory_format=torch.contiguous_format
            )
            for p, width in enumerate(prefixes.widths):
                of_x, of_y = terms[0][own, p].contiguous(), terms[1][:, p].contiguous()
                turned = alignment_gradients(
                    *_vectors(own, x, y, p), of_x, of_y, scale, gradient, width, launch
                )
                if not made:
                    along += turned.sum()
            made.append(gradient.to(x.vectors.dtype))
        return Gradients(made[0], made[1], along)


class _Side(NamedTuple):
    """All queries or all keys."""

    vectors: Tensor
    groups: Tensor
    names: Tensor
    lengths: Tensor | None


def _sides(pool: Pool, prefixes: Prefixes) -> tuple[tuple[slice, _Side, _Side], ...]:
    """Return this rank's rows, their side and the other side: for queries, and for keys."""
    names = torch.arange(len(pool.keys), device=pool.keys.device)
    queries = _Side(
        pool.queries, pool.query_groups.contiguous(), pool.positives.contiguous(), prefixes.of_queries
    )
    keys = _Side(pool.keys, pool.key_groups.contiguous(), names, prefixes.of_keys)
    return (pool.own_queries, queries, keys), (pool.own_keys, keys, queries)


def _vectors(own: slice, x: _Side, y: _Side, p: int) -> tuple[Any, ...]:
    """The arguments that both operations begin with."""
    x_length = None if x.lengths is None else x.lengths[own, p].contiguous()
    y_length = None if y.lengths is None else y.lengths[:, p].contiguous()
    return x.vectors[own], y.vectors, x.groups[own], y.groups, x.names[own], y.names, x_length, y_length


@torch.library.custom_op("calque::alignment_negatives", mutates_args=())
def alignment_negatives(
    x: Tensor,
    y: Tensor,
    x_group: Tensor,
    y_group: Tensor,
    x_name: Tensor,
    y_name: Tensor,
    x_length: Tensor | None,
    y_length: Tensor | None,
    scale: Tensor,
    width: int,
    launch: list[int],
) -> tuple[Tensor, Tensor]:
    """Return n and the largest z of every row of ``x`` (rows,), -inf where it has no negative."""
    how = _Launch(*launch)
    logsumexp = torch.empty(len(x), dtype=torch.float32, device=x.device)
    largest = torch.empty_like(logsumexp)
    if len(x):
        _negatives_kernel[(triton.cdiv(len(x), how.rows),)](
            x, y, x_group, y_group, x_name, y_name,
            scale if x_length is None else x_length, scale if y_length is None else y_length, scale,
            logsumexp, largest, len(x), len(y), width, *x.stride(), *y.stride(),
            LENGTHS=x_length is not None, PRECISION=_precision(), BX=how.rows, BY=how.columns, BE=how.coordinates,
            num_warps=how.warps, num_stages=how.stages,
        )  # fmt: skip
    return logsumexp, largest


@torch.library.custom_op("calque::alignment_gradients", mutates_args=("gradient",))
def alignment_gradients(
    x: Tensor,
    y: Tensor,
    x_group: Tensor,
    y_group: Tensor,
    x_name: Tensor,
    y_name: Tensor,
    x_length: Tensor | None,
    y_length: Tensor | None,
    x_terms: Tensor,
    y_terms: Tensor,
    scale: Tensor,
    gradient: Tensor,
    width: int,
    launch: list[int],
) -> Tensor:
    """Add dx to ``gradient`` (rows, E) float32; return t (rows,)."""
    how = _Launch(*launch)
    along = torch.empty(len(x), dtype=torch.float32, device=x.device)
    if len(x):
        _gradients_kernel[(triton.cdiv(len(x), how.rows), triton.cdiv(width, how.out))](
            x, y, x_group, y_group, x_name, y_name,
            scale if x_length is None else x_length, scale if y_length is None else y_length,
            x_terms, y_terms, scale, gradient, along,
            len(x), len(y), width, *x.stride(), *y.stride(), gradient.stride(0),
            LENGTHS=x_length is not None, PRECISION=_precision(),
            BX=how.rows, BY=how.columns, BE=how.coordinates, BO=how.out,
            num_warps=how.warps, num_stages=how.stages,
        )  # fmt: skip
    return along


@alignment_negatives.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), dtype=torch.float32), x.new_empty(len(x), dtype=torch.float32)


@alignment_gradients.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), dtype=torch.float32)


def _precision() -> str:
    return "ieee" if torch.version.hip else "tf32x3"


def aot_variants() -> list[AotVariant]:
    """The kernels as they are launched for vectors of 768 coordinates, for kernels/aot.py."""
    found = []
    whole = {"width", "x_row", "y_row", "gradient_row"}
    for dtype, size, lengths in (
        ("bf16", 2, False),
        ("bf16", 2, True),
        ("fp16", 2, False),
        ("fp32", 4, False),
    ):
        for precision, targets in (("tf32x3", ("sm_80", "sm_90", "sm_100")), ("ieee", ("gfx942",))):
            for kernel, launch in (
                (_negatives_kernel, _NEGATIVES[size]),
                (_gradients_kernel, _GRADIENTS[size]),
            ):
                constants: dict[str, Any] = {
                    "x_column": 1,
                    "y_column": 1,
                    "LENGTHS": lengths,
                    "PRECISION": precision,
                }
                constants |= {"BX": launch.rows, "BY": launch.columns, "BE": launch.coordinates}
                constants |= {"BO": launch.out} if launch.out else {}
                kinds = dict.fromkeys(("x", "y"), f"*{dtype}")
                kinds |= dict.fromkeys(("x_group", "y_group", "x_name", "y_name"), "*i64")
                kinds |= dict.fromkeys(("x_rows", "y_rows", *whole), "i32")
                kinds |= dict.fromkeys(constants, "constexpr")
                signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
                parts = [kernel.__name__[1:].removesuffix("_kernel"), dtype]
                parts += ["lengths"] * lengths + ["hip"] * (precision == "ieee")
                found.append(
                    AotVariant(
                        "_".join(parts),
                        kernel,
                        signature,
                        constants,
                        tuple(
                            name for name, kind in signature.items() if kind.startswith("*") or name in whole
                        ),
                        launch.warps,
                        launch.stages,
                        tensor_cores=True,
                        targets=targets,
                    )
                )
    return found
