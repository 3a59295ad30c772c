"""Which spans of a text pseudo tokens stand in for: mixed text that needs neither dictionary nor translations."""

from __future__ import annotations

import numpy as np

# Lengths of SpanBERT (Joshi et al., 2020): geometric, 3.8 tokens on average with the bound.
_SPAN_CHANCE = 0.2
_LONGEST_SPAN = 10


def choose_spans(reach: int, count: int, rate: float, random: np.random.Generator) -> np.ndarray:
    """Places (k,) of the tokens to replace, ascending: ``rate`` of ``count``, one at least, in spans.

    Only the first ``reach`` tokens are replaced, and one of the text always stays. Spans may touch.
    """
    budget = min(max(1, round(rate * count)), reach, count - 1)
    if budget < 1:
        return np.empty(0, dtype=np.int64)
    lengths = np.minimum(random.geometric(_SPAN_CHANCE, budget), _LONGEST_SPAN)
    ends = np.minimum(np.cumsum(lengths), budget)
    lengths = np.diff(ends, prepend=0)
    lengths = random.permutation(lengths[lengths > 0])  # the last is what was left over
    # As many starts as there are spans, out of the tokens that stay and the spans, in every order alike.
    starts = np.sort(random.choice(reach - budget + len(lengths), len(lengths), replace=False))
    starts += np.cumsum(lengths) - lengths - np.arange(len(lengths))
    places = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    # Turned round by chance, a span over the end going on at the beginning: so every token is as likely.
    return np.sort((np.concatenate(places) + random.integers(reach)) % reach)
