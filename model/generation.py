"""Generation: which ids stand at the placeholders of a batch, all at once, by the current weights, without gradient.

    scores = features @ table^T + bias  over the ordinary ids        argmax, or a draw from the k best

Non-autoregressive: every placeholder is decided by itself (ERNIE-M, Ouyang et al., 2021). Of a table that is cut over
tensor ranks each finds the best ids of its own rows, and the best of these decide. Letters: M placeholders, D width,
V rows of the token table, L languages, k best ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.parallel.collectives import all_gather
from model.parallel.topology import Axis

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
        self,
        features: Tensor,
        table: Tensor,
        bias: Tensor,
        languages: Tensor,
        draws: Tensor,
        tensor: Axis = Axis(),
    ) -> Tensor:
        """Return ids (M,) for ``features`` (M, D) under ``table`` (V, D) and ``bias`` (V,).

        ``languages`` (M,) are those of the placeholders; ``draws`` (M,) in [0, 1) decide a draw, so that it is a
        function of the scores and of the record, whatever else is in the batch. ``table`` and ``bias`` are this
        rank's rows, as many on every rank of ``tensor``; every rank must call, and all get the same.
        """
        scores, ids = self._best(features, table, bias, languages, first=tensor.rank * len(table))
        if tensor.size > 1:
            # (ranks, M, k) -> (M, ranks * k); in the order of the ids, so that the lowest of equal ones comes first.
            every = (all_gather(own[None], tensor).transpose(0, 1).flatten(1) for own in (scores, ids))
            scores, ids = every
            best = self._largest(scores)
            scores, ids = scores.gather(1, best), ids.gather(1, best)
        place = self._decide(scores, draws)
        return ids.gather(1, place[:, None])[:, 0]

    def _best(
        self, features: Tensor, table: Tensor, bias: Tensor, languages: Tensor, *, first: int
    ) -> tuple[Tensor, Tensor]:
        """Scores (M, k) and ids (M, k) of the best ordinary ids of rows that begin at id ``first``, best first.

        -inf where there are fewer.
        """
        start, stop = (
            min(max(bound - first, 0), len(table)) for bound in (self.ordinary.start, self.ordinary.stop)
        )
        rows = max(1, SCORES_AT_ONCE // max(len(table), 1))
        count = min(self.top_k, len(self.ordinary))
        wide = torch.promote_types(features.dtype, torch.float32)
        best = features.new_full((len(features), count), float("-inf"), dtype=wide)
        ids = torch.full_like(best, self.ordinary.start, dtype=torch.int64)
        if start == stop:
            return best, ids
        allowed = None
        if self.allowed is not None:
            has_any = self.allowed[:, self.ordinary.start : self.ordinary.stop].any(1, keepdim=True)
            allowed = self.allowed[:, first + start : first + stop] | ~has_any
        for begin in range(0, len(features), rows):
            piece = slice(begin, begin + rows)
            scores = F.linear(features[piece], table[start:stop], bias[start:stop]).to(wide)
            if allowed is not None:
                scores.masked_fill_(~allowed[languages[piece]], float("-inf"))
            columns = self._largest(scores)
            best[piece, : columns.shape[1]] = scores.gather(1, columns)
            ids[piece, : columns.shape[1]] = first + start + columns
        return best, ids

    def _largest(self, scores: Tensor) -> Tensor:
        """(m, n) -> (m, min(k, n)) columns of the largest, largest first."""
        if self.top_k == 1:
            return scores.argmax(1, keepdim=True)
        return scores.topk(min(self.top_k, scores.shape[1]), dim=1).indices

    def _decide(self, best: Tensor, draws: Tensor) -> Tensor:
        """(m, k) scores, largest first, and (m,) draws -> (m,) columns."""
        reached = torch.softmax(best.double() / self.temperature, 1).cumsum(1)
        # The first whose cumulated probability is above the draw; rounding may leave the last a little below one.
        place = (reached <= draws.double()[:, None]).sum(1).clamp(max=best.shape[1] - 1)
        # An id that is not allowed has probability zero, and comes last.
        return place.minimum((best > float("-inf")).sum(1) - 1)
