"""The forms of the adaptive margin loss: from the student's and the teacher's gap to a loss and its slope."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["hinge", "squared_hinge", "softplus", "fixed", "mse"]


class MarginForm(NamedTuple):
    """A form and its constants. Target of a gap: D' = clip(scale * teacher's gap + offset, minimum, maximum).

    hinge           relu(D' - Ds)                      one-sided: more than the target costs nothing
    squared_hinge   relu(D' - Ds)^2
    softplus        tau softplus((D' - Ds) / tau)      the smooth hinge
    fixed           relu(offset - Ds)                  a control: the teacher is not asked
    mse             (Ds - D')^2                        a control: MarginMSE (Hofstatter et al., 2020), two-sided
    """

    kind: Kind
    scale: float = 1.0
    offset: float = 0.0
    minimum: float | None = None
    maximum: float | None = None
    tau: float = 0.05

    def target(self, teacher_gaps: Tensor) -> Tensor:
        """D' of teacher's gaps of any shape."""
        if self.kind == "fixed":
            return torch.full_like(teacher_gaps, self.offset)
        target = self.scale * teacher_gaps + self.offset
        if self.minimum is None and self.maximum is None:
            return target
        return target.clamp(self.minimum, self.maximum)

    def loss(self, missing: Tensor) -> Tensor:
        """Loss of D' - Ds, of any shape."""
        if self.kind == "mse":
            return missing.square()
        if self.kind == "softplus":
            # torch's own softplus is linear above 20, which float64 can tell
            return self.tau * torch.logaddexp(missing / self.tau, torch.zeros_like(missing))
        short = missing.relu()
        return short.square() if self.kind == "squared_hinge" else short

    def slope(self, missing: Tensor) -> Tensor:
        """d loss / d Ds, of any shape."""
        if self.kind == "mse":
            return -2 * missing
        if self.kind == "softplus":
            return -(missing / self.tau).sigmoid()
        if self.kind == "squared_hinge":
            return -2 * missing.relu()
        return -(missing > 0).to(missing.dtype)


class GapSums(NamedTuple):
    """What is counted over the terms of a loss, from which its statistics are made; all () float64."""

    terms: Tensor
    active: Tensor  # terms where the student's gap is below the target
    student: Tensor  # sum of Ds
    student_squares: Tensor
    teacher: Tensor  # sum of Dt
    teacher_squares: Tensor


def gap_sums(student: Tensor, teacher: Tensor, missing: Tensor, counts: Tensor) -> Tensor:
    """The six numbers of GapSums (6,) for gaps of one shape, over the terms that ``counts`` (bool) names."""
    student, teacher = student * counts, teacher * counts
    # Rows in the width of the gaps, and only their sums in float64: a tile is not copied for a statistic.
    rows = [part.sum(1) for gaps in (student, teacher) for part in (gaps, gaps.square())]
    whole = [((missing > 0) & counts).sum().double(), *(row.double().sum() for row in rows)]
    return torch.stack([counts.sum().double(), *whole])


class MarginLoss(NamedTuple):
    """What the margin losses return, for this rank's Q rows (a row is an anchor with its negatives)."""

    total: Tensor  # () weighted sum of this rank's rows, differentiable
    rows: Tensor  # (Q,) mean loss over each row's negatives, 0 where there is none; detached
    correct: Tensor  # (Q,) bool: no negative is closer to the anchor than the positive
    gaps: GapSums  # over this rank's terms
