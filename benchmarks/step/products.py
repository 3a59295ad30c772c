"""The matrix products of a step and nothing else: what the machine can do at best with these shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.step.documents import documents_of
from benchmarks.step.problem import Problem, Work
from model.attention import ROWS_AT_ONCE
from model.layout import BucketedLayout, make_layout


class Product(NamedTuple):
    """``times`` linear layers (rows, inputs) -> (rows, outputs); forward, gradient of the input, of the weight."""

    rows: int
    inputs: int
    outputs: int
    times: int
    learned: bool = True  # else the forward alone

    @property
    def operations(self) -> int:
        """Of all its products."""
        return (6 if self.learned else 2) * self.rows * self.inputs * self.outputs * self.times


def products_of(problem: Problem, work: Work) -> list[Product]:
    """The linear layers of the encoder and of the head; attention within documents and the losses are left out.

    In the last layer only what is read afterwards goes on behind attention. Pseudo tokens are written in a forward of
    its own.
    """
    width, inner, deep = problem.width, problem.feed_forward, problem.layers
    behind = [(width, width), (width, inner), (inner, width)]  # attention
    found = []
    for tokens, predictions, learned in (
        (work.tokens, work.predictions, True), (work.read_to_write, work.written, False),
    ):  # fmt: skip
        read = tokens if problem.aligns else predictions
        if tokens:
            found.append(Product(tokens, width, 3 * width, deep, learned))
            found += [Product(tokens, *sides, deep - 1, learned) for sides in behind if deep > 1]
            found += [Product(read, *sides, 1, learned) for sides in behind]
        if predictions:
            found += [Product(predictions, width, out, 1, learned) for out in (width, problem.vocabulary)]
    return found


class Within(NamedTuple):
    """``times`` layers' attention within documents that are padded to one length, of all heads."""

    documents: int
    length: int
    heads: int
    width: int  # of a head
    times: int
    learned: bool = True

    @property
    def operations(self) -> int:
        """Of scores and of what they weigh; of the gradients of both factors of either."""
        each = 2 * self.documents * self.heads * self.length**2 * self.width
        return (6 if self.learned else 2) * each * self.times


def products_within(problem: Problem, lengths: Sequence[int], written: Sequence[int]) -> list[Within]:
    """Attention's products in documents of ``lengths``, and in those in which pseudo tokens are ``written`` before.

    Documents of nearly one length are padded to it, as the run does it.
    """
    found = []
    for some, learned in ((lengths, True), (written, False)):
        starts = torch.tensor([0, *some]).cumsum(0)
        layout = make_layout(
            torch.zeros(sum(some), dtype=torch.int64), starts, starts.diff(), pad_id=-1, dtype=torch.float32
        )
        assert isinstance(layout, BucketedLayout)
        found += [
            Within(
                bucket.documents,
                bucket.length,
                problem.heads,
                problem.width // problem.heads,
                problem.layers,
                learned,
            )
            for bucket in layout.buckets
        ]
    return found


class LinearStep:
    """The products of the linear layers and the head, into memory that is there already."""

    def __init__(self, problem: Problem) -> None:
        """Make the operands."""
        self.documents = documents_of(problem)
        self.work = self.documents.work
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[problem.precision]
        self._products = [
            (product, _operands(product, self.dtype, problem.device))
            for product in products_of(problem, self.work)
        ]

    def __call__(self) -> None:
        """Each as often as a step has it."""
        for product, (rows, weight, result, of_rows, of_weight) in self._products:
            for _ in range(product.times):
                torch.mm(rows, weight.T, out=result)
                if product.learned:
                    torch.mm(result, weight, out=of_rows)
                    torch.mm(result.T, rows, out=of_weight)


class ProductsStep(LinearStep):
    """All products of a step: those within documents too."""

    def __init__(self, problem: Problem) -> None:
        """Make the operands."""
        super().__init__(problem)
        lengths = [len(read.ids) for read in self.documents.read]
        self._within = [
            (each, _matrices(each, self.dtype, problem.device))
            for each in products_within(problem, lengths, self.documents.written)
        ]

    def __call__(self) -> None:
        """Each as often as a step has it."""
        super().__call__()
        for each, matrices in self._within:
            for _ in range(each.times):
                for piece in matrices:
                    _multiply(*piece, learned=each.learned)


def _multiply(
    queries: Tensor, keys: Tensor, values: Tensor, outputs: Tensor, weights: Tensor, of_weights: Tensor,
    *, learned: bool,
) -> None:  # fmt: skip
    """Attention and its gradient without the softmax between; results go into operands that are read no more."""
    torch.bmm(queries, keys.transpose(1, 2), out=weights)
    torch.bmm(weights, values, out=outputs)
    if learned:
        torch.bmm(outputs, values.transpose(1, 2), out=of_weights)
        for matrix, other in ((of_weights, keys), (of_weights.transpose(1, 2), queries)):
            torch.bmm(matrix, other, out=outputs)
        torch.bmm(weights.transpose(1, 2), values, out=outputs)


def _matrices(within: Within, dtype: torch.dtype, device: str) -> list[tuple[Tensor, ...]]:
    """Operands of pieces of so many documents that scores stay in the cache; all pieces have one pair of those."""
    at_once = max(1, ROWS_AT_ONCE // within.length)
    generator = torch.Generator().manual_seed(1)
    shape = (4, within.documents * within.heads, within.length, within.width)
    # So small that products of products stay finite.
    streams = torch.randn(shape, generator=generator).mul_(1e-1).to(device, dtype)
    rows = min(at_once, within.documents) * within.heads
    scores = streams.new_empty(2, rows, within.length, within.length)
    pieces = []
    for first in range(0, within.documents, at_once):
        piece = streams[:, first * within.heads : (first + at_once) * within.heads]
        pieces.append((*piece, *scores[:, : piece.shape[1]]))
    return pieces


def _operands(product: Product, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(product.rows, product.inputs, generator=generator).to(device, dtype)
    # So small that products of products stay finite.
    weight = torch.randn(product.outputs, product.inputs, generator=generator).mul_(1e-3).to(device, dtype)
    result = rows.new_empty(product.rows, product.outputs)
    return rows, weight, result, torch.empty_like(rows), torch.empty_like(weight)
