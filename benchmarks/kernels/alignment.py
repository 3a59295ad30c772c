"""The alignment loss and its like: symmetric InfoNCE of N pairs, the mean over both directions.

All compute the same number: every key but a query's own is a negative, all weights are 1/N, the temperature is fixed.
sentence-transformers' loss gets unit vectors from a model that does nothing, both directions, one softmax each, and the
dot product; the cached one works on 1,024 rows at a time. OpenCLIP's formula is cross entropy of the similarities and
of their transpose. "products" is no loss: the four matrix products that any of them needs which does not hold the
similarities, over tiles of 4,096.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kernels.problem import Outcome, Problem, Run, not_here
from kernels.alignment import alignment_loss
from kernels.implementation import ImplementationUnavailable

SCALE: Final = 20.0
_CACHED_ROWS: Final = 1024
_PRODUCT_TILE: Final = 4096


class Inputs(NamedTuple):
    """N pairs of unit vectors."""

    queries: Tensor  # (N, E)
    keys: Tensor  # (N, E)


def make(problem: Problem, *, small: bool = False) -> Inputs:
    """The vectors of ``problem``; ``small`` are few of the same kind, for the error."""
    pairs = min(problem.size["pairs"], 512) if small else problem.size["pairs"]
    generator = torch.Generator().manual_seed(pairs)
    width, dtype = problem.size["width"], getattr(torch, problem.dtype)
    queries = functional.normalize(torch.randn(pairs, width, generator=generator))
    # A query's own key is at a cosine of about 0.6: neither all alike nor so easy that the loss is rounding.
    keys = torch.randn(pairs, width, generator=generator).mul_(1.3 * width**-0.5).add_(queries)
    keys = functional.normalize(keys, out=keys)
    return Inputs(*(side.to(problem.device, dtype).requires_grad_() for side in (queries, keys)))


def truth(inputs: Inputs) -> Outcome:
    """In float64, by the definition."""
    wide = Inputs(*(side.detach().double().requires_grad_() for side in inputs))
    return ours("reference")(wide)()


def ours(implementation: str) -> Callable[[Inputs], Run]:
    """One of the implementations behind ``alignment_loss``."""

    def prepare(inputs: Inputs) -> Run:
        pairs, device = len(inputs.queries), inputs.queries.device
        numbers = torch.arange(pairs, device=device)
        wide = torch.promote_types(inputs.queries.dtype, torch.float32)
        scale = torch.tensor(SCALE, dtype=wide, device=device)
        weights = torch.full((pairs,), 1 / pairs, dtype=wide, device=device)

        def run() -> Outcome:
            try:
                loss = alignment_loss(
                    *inputs, numbers, scale, query_groups=numbers, key_groups=numbers, weights=weights,
                    implementation=implementation,
                )  # fmt: skip
            except ImplementationUnavailable as error:
                raise not_here(error) from None
            return Outcome(loss.total.detach(), torch.autograd.grad(loss.total, inputs))

        return run

    return prepare


def open_clip(inputs: Inputs) -> Run:
    """Cross entropy of the similarities, of both sides."""
    return _of_function(_both_ways, inputs)


def compiled(inputs: Inputs) -> Run:
    """The same under torch.compile."""
    return _of_function(torch.compile(_both_ways, dynamic=False), inputs)


def _both_ways(queries: Tensor, keys: Tensor) -> Tensor:
    logits, own = SCALE * queries @ keys.T, torch.arange(len(queries), device=queries.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def _of_function(function: Callable[..., Tensor], inputs: Inputs) -> Run:
    def run() -> Outcome:
        loss = function(*inputs)
        return Outcome(loss.detach(), torch.autograd.grad(loss, inputs))

    return run


def sentence_transformers(cached: bool) -> Callable[[Inputs], Run]:
    """MultipleNegativesRankingLoss, or the one that works on some rows at a time."""

    def prepare(inputs: Inputs) -> Run:
        from sentence_transformers import util
        from sentence_transformers.sentence_transformer import losses

        options: dict[str, Any] = {
            "scale": SCALE,
            "similarity_fct": util.dot_score,
            "directions": ("query_to_doc", "doc_to_query"),
            "partition_mode": "per_direction",
        }
        model = nn.Sequential(_Given())
        if cached:
            loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=_CACHED_ROWS, **options)
        else:
            loss = losses.MultipleNegativesRankingLoss(model, **options)

        def run() -> Outcome:
            # The cached loss calls backward by itself, so gradients are read where that leaves them.
            total = loss([{"rows": inputs.queries}, {"rows": inputs.keys}], None)
            total.backward()
            gradients = tuple(side.grad for side in inputs)
            for side in inputs:
                side.grad = None
            return Outcome(total.detach(), gradients)

        return run

    return prepare


class _Given(nn.Module):
    """A model whose sentence vectors are what it is given."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["rows"]}


def products(inputs: Inputs) -> Run:
    """Similarities twice, and a product with them for each side; the loss is not computed."""
    queries, keys = (side.detach() for side in inputs)

    def run() -> Outcome:
        gradients = torch.zeros_like(queries), torch.zeros_like(keys)
        largest = min(_PRODUCT_TILE, len(queries))
        buffer = queries.new_empty(largest * largest)
        for q in range(0, len(queries), largest):
            some = queries[q : q + largest]
            for k in range(0, len(keys), largest):
                others = keys[k : k + largest]
                tile = buffer[: len(some) * len(others)].view(len(some), len(others))
                torch.mm(some, others.T, out=tile)
                torch.mm(some, others.T, out=tile)
                gradients[0][q : q + largest].addmm_(tile, others)
                gradients[1][k : k + largest].addmm_(tile.T, some)
        return Outcome(None, gradients)

    return run


CONTESTANTS: Final[dict[str, tuple[str, Callable[[Inputs], Run]]]] = {
    **{name: (f"ours, {name}", ours(name)) for name in ("reference", "streaming", "triton")},
    "compiled": ("dense under torch.compile", compiled),
    "open_clip": ("OpenCLIP's formula", open_clip),
    "sentence_transformers": ("sentence-transformers", sentence_transformers(cached=False)),
    "sentence_transformers_cached": ("sentence-transformers, cached", sentence_transformers(cached=True)),
    "products": ("its four matrix products alone", products),
}
