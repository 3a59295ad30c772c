"""AlignmentPool: all pairs of a step are each other's negatives, also where a rank has several microbatches.

The in-batch margin, where a recipe has it, is a second loss of the same pool.

    pool = AlignmentPool(weights, ranks=group)
    for batch in microbatches:                          # first pass: no gradient, sentence documents only
        pool.collect(model(batch, sentence_vectors_only=True), batch)
    alignment = pool.solve()                            # one kernel call over microbatches and ranks
    for number, batch in enumerate(microbatches):       # second pass: the ordinary forward and backward
        output = model(batch, weights[batch.prediction_stream])
        (output.prediction_total + pool.surrogate(number, output)).backward()

The loss depends on a microbatch's weights only through its sentence vectors v, so with the constant g = dL/dv
the gradient of sum(v * g) is the gradient of L. The same as one pool without microbatches, as long as both
passes give the same vectors: no dropout.

Source: gradient caching, Gao et al. 2021 ("Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from data.batch import PackedBatch
from model.pretraining import PretrainingOutput
from objectives.adaptive_margin import InBatch, Margin, pair_margin
from objectives.alignment import Alignment, Comparison, Pairs, align, pairs_of


class AlignmentPool:
    """The sentence vectors of one step of this rank, then their gradients."""

    def __init__(
        self,
        weights: Tensor,
        *,
        comparison: Comparison = Comparison(),  # noqa: B008  # a tuple: nothing in it changes
        in_batch: InBatch | None = None,
        ranks: ProcessGroup | None = None,
        alignment: str = "auto",
        margin: str = "auto",
    ) -> None:
        """``weights`` (S,), ``comparison``, ``ranks`` as in ``sentence_alignment``; then each loss's implementation."""
        self._weights = weights
        self._comparison = comparison
        self._in_batch = in_batch
        self._ranks = ranks
        self._of_alignment, self._of_margin = alignment, margin
        self._vectors: list[Tensor] = []
        self._teacher_vectors: list[Tensor] = []
        self._pairs: list[Pairs] = []
        self.margin: Margin | None = None  # after solve, where there is one; detached
        self._gradients: tuple[Tensor, ...] = ()

    def collect(self, output: PretrainingOutput, batch: PackedBatch) -> None:
        """Keep the sentence vectors of the rank's next microbatch, without their graph."""
        documents_before = sum(map(len, self._vectors))
        self._vectors.append(output.sentence_vectors.detach())
        self._inverse_temperature = output.inverse_temperature.detach()
        self._teacher_vectors.append(batch.teacher_vectors)
        pairs = pairs_of(batch)
        moved = {name: getattr(pairs, name) + documents_before for name in ("documents", "negatives")}
        self._pairs.append(pairs._replace(**moved))

    def solve(self) -> Alignment:
        """Return the loss of the rank's pairs in the pool of the step, detached; every rank must call."""
        with torch.enable_grad():
            vectors = torch.cat(self._vectors).requires_grad_()
            inverse_temperature = self._inverse_temperature.requires_grad_()
            pairs = Pairs(*map(torch.cat, zip(*self._pairs, strict=True)))
            total, report = align(
                vectors,
                inverse_temperature,
                pairs,
                self._weights,
                comparison=self._comparison,
                ranks=self._ranks,
                implementation=self._of_alignment,
            )
            whole = total
            if self._in_batch is not None:
                margin = pair_margin(
                    vectors,
                    torch.cat(self._teacher_vectors),
                    pairs,
                    self._in_batch,
                    ranks=self._ranks,
                    implementation=self._of_margin,
                )
                whole = total + margin.total
                self.margin = margin._replace(total=margin.total.detach())
            of_vectors, of_temperature = torch.autograd.grad(whole, (vectors, inverse_temperature))
        self._gradients = of_vectors.split([len(part) for part in self._vectors])
        self._gradient_of_temperature = of_temperature
        return Alignment(total.detach(), report)

    def surrogate(self, microbatch: int, output: PretrainingOutput) -> Tensor:
        """Return a number () whose gradient is the loss's, for microbatch 0, 1, ... in the order of collect.

        Its value means nothing. The temperature's gradient is the step's and rides on microbatch 0; in the
        others it is multiplied by zero, so that the graph is the same everywhere.
        """
        of_temperature = self._gradient_of_temperature * float(microbatch == 0)
        of_vectors = (output.sentence_vectors * self._gradients[microbatch]).sum()
        return of_vectors + output.inverse_temperature * of_temperature
