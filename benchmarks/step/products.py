"""The matrix products of a step and nothing else: what the machine can do at best with these shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.step.documents import documents_of
from benchmarks.step.problem import Problem, Work


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


class ProductsStep:
    """The products, into memory that is there already."""

    def __init__(self, problem: Problem) -> None:
        """Make the operands."""
        self.work = documents_of(problem).work
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[problem.precision]
        self._products = [
            (product, _operands(product, dtype, problem.device))
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


def _operands(product: Product, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(product.rows, product.inputs, generator=generator).to(device, dtype)
    # So small that products of products stay finite.
    weight = torch.randn(product.outputs, product.inputs, generator=generator).mul_(1e-3).to(device, dtype)
    result = rows.new_empty(product.rows, product.outputs)
    return rows, weight, result, torch.empty_like(rows), torch.empty_like(weight)
