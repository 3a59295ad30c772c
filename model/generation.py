"""Generation: which ids stand at the placeholders of a batch, all at once, by the current weights, without gradient.

    scores = features @ table^T + bias  over the ordinary ids        argmax, or a draw from the k best

Non-autoregressive: every placeholder is decided by itself (ERNIE-M, Ouyang et al., 2021). Letters: M placeholders,
D width, V rows of the token table, L languages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Scores of all placeholders never exist at once: 2 ** 24 of them take 64 MiB in float32.
SCORES_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Decoding:
    """How ids are chosen. A dataclass, so that ZeRO-3's hooks do not look into it.

    Args:
        ordinary: the ids that may be chosen at all: no special one, and none that only rounds up the table.
        top_k: 1 takes the best id; more draw one of the k best with their probability.
        temperature: the scores are divided by it before a draw.
        allowed: (L, V) bool, the ids that each language may be given; None: all ordinary ones. A language without
            any gets all.

    """

    ordinary: range
    top_k: int = 1
    temperature: float = 1.0
    allowed: Tensor | None = None

    def choose(
        self, features: Tensor, table: Tensor, bias: Tensor, languages: Tensor, draws: Tensor
    ) -> Tensor:
        """Return ids (M,) for ``features`` (M, D) under ``table`` (V, D) and ``bias`` (V,).

        ``languages`` (M,) are those of the placeholders; ``draws`` (M,) in [0, 1) decide a draw, so that it is a
        function of the scores and of the record, whatever else is in the batch.
        """
        first, last = self.ordinary.start, self.ordinary.stop
        table, bias = table[first:last], bias[first:last]
        allowed = None
        if self.allowed is not None:
            allowed = self.allowed[:, first:last]
            allowed = allowed | ~allowed.any(1, keepdim=True)
        rows = max(1, SCORES_AT_ONCE // len(table))
        ids = torch.empty(len(features), dtype=torch.int64, device=features.device)
        for start in range(0, len(features), rows):
            piece = slice(start, start + rows)
            scores = F.linear(features[piece], table, bias)
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            if allowed is not None:
                scores.masked_fill_(~allowed[languages[piece]], float("-inf"))
            ids[piece] = first + self._decide(scores, draws[piece])
        return ids

    def _decide(self, scores: Tensor, draws: Tensor) -> Tensor:
        """(m, V) scores, (m,) draws -> (m,) columns."""
        if self.top_k == 1:
            return scores.argmax(1)
        best, columns = scores.topk(min(self.top_k, scores.shape[1]), dim=1)
        reached = torch.softmax(best.double() / self.temperature, 1).cumsum(1)
        # The first whose cumulated probability is above the draw; rounding may leave the last a little below one.
        place = (reached <= draws.double()[:, None]).sum(1).clamp(max=best.shape[1] - 1)
        # An id that is not allowed has probability zero, and comes last.
        place = place.minimum((best > float("-inf")).sum(1) - 1)
        return columns.gather(1, place[:, None])[:, 0]
