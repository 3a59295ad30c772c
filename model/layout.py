"""How a stream's documents lie in memory inside the encoder; computed once per forward.

```
 stream     | doc 0 | doc 1 | doc 2 | ... | padding tail |        (T rows)
   arrange  |  one row per token the layers compute; the tail is left out
 layers     | longest documents ... shortest documents |          (R rows; buckets: a few % more than tokens)
   restore  | doc 0 | doc 1 | doc 2 | ... | zeros |               (T rows)
```

Two layouts. ``BucketedLayout`` sorts the documents by length and pads each bucket of
nearly equal lengths to its longest, so that attention reads a bucket as a plain (documents, length) view,
without a copy, and mostly without a mask. ``VariableLengthLayout`` leaves the order alone and gives torch's
variable-length kernel its offsets; it needs a GPU and a 16-bit type. Where the number of rows must be a multiple of
something, documents of one row fill it up, which repeat a token and which nobody reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# A document joins the bucket of a longer one if that pads it by at most a twelfth of the bucket's length (or
# one token). With documents of 5 to 60 tokens 3 % of the rows are padding, for a third of the calls.
PADDING_SHARE = 12


class Bucket(NamedTuple):
    """``documents`` documents, each padded to ``length`` rows, from row ``start`` of the layout on."""

    start: int
    documents: int
    length: int
    hidden_keys: Tensor | None
    """(documents, 1, 1 or length, length) bool: True where a query must not see a key; None: all see all."""

    @property
    def rows(self) -> int:
        """Rows of the layout that the bucket fills."""
        return self.documents * self.length


@dataclass(frozen=True, eq=False)
class BucketedLayout:
    """Documents sorted by length, in buckets padded to one length; padding repeats their first token."""

    tokens: int  # T
    order: Tensor  # (R,) int64: stream position that each row shows
    places: Tensor  # (tokens before the padding tail,) int64: row of each stream position
    padding: Tensor  # int64: the rows that are padding
    buckets: tuple[Bucket, ...]  # longest first

    def arrange(self, values: Tensor) -> Tensor:
        """(T, ...) in the order of the stream -> (R, ...) in the order of the layout."""
        return values.index_select(0, self.order)

    def rows_of(self, positions: Tensor) -> Tensor:
        """(P,) positions in the stream, none in its padding tail -> (P,) their rows."""
        return self.places.index_select(0, positions)

    def restore(self, hidden: Tensor) -> Tensor:
        """(R, D) in the order of the layout -> (T, D) in that of the stream, zeros in the padding tail."""
        restored: Tensor = _Restore.apply(hidden, self)
        return restored


class Segments(NamedTuple):
    """One call of the variable-length kernel: rows of queries and keys, offsets of documents, longest one."""

    query_rows: Tensor
    key_rows: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True, eq=False)
class VariableLengthLayout:
    """The order of the stream, without its padding tail; contexts and readers are one call each."""

    tokens: int  # T
    order: Tensor | None  # (R,) int64 as above, where R is filled up
    rows: int  # the tokens before the padding tail; R is that, or filled up
    everyone: Segments | None  # all documents are all context: no rows need to be picked
    calls: tuple[
        Segments, ...
    ]  # else: contexts among themselves, readers on their documents (either may be missing)
    places: Tensor | None  # (R,) int64: where each row's output lies in the concatenated outputs of ``calls``

    def arrange(self, values: Tensor) -> Tensor:
        """(T, ...) -> (R, ...): the tail is cut off."""
        return values[: self.rows] if self.order is None else values.index_select(0, self.order)

    def rows_of(self, positions: Tensor) -> Tensor:
        """(P,) positions in the stream -> (P,) their rows: the same."""
        return positions

    def restore(self, hidden: Tensor) -> Tensor:
        """(R, D) -> (T, D) with zeros in the padding tail."""
        return F.pad(hidden[: self.rows], (0, 0, 0, self.tokens - self.rows))


Layout = BucketedLayout | VariableLengthLayout


class _Restore(torch.autograd.Function):
    """Gather rows; the gradient is a gather too, where index_select's own adds row by row."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layout: BucketedLayout) -> Tensor:
        ctx.layout = layout
        stream = hidden.new_zeros(layout.tokens, *hidden.shape[1:])
        torch.index_select(hidden, 0, layout.places, out=stream[: len(layout.places)])
        return stream

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layout: BucketedLayout = ctx.layout
        arranged = gradients[0].index_select(0, layout.order)
        # A row of padding was dropped by restore; the token it repeats already has its own row.
        return arranged.index_fill_(0, layout.padding, 0), None


def make_layout(
    token_ids: Tensor,
    document_starts: Tensor,
    context_lengths: Tensor,
    *,
    pad_id: int,
    dtype: torch.dtype,
    multiple: int = 1,
) -> Layout:
    """Lay out documents ``[document_starts[n], document_starts[n + 1])`` of a stream of ``token_ids`` (T,).

    The last document is the padding tail if its first token is ``pad_id``. On a GPU with a 16-bit ``dtype``
    the variable-length kernel is used, in every other case buckets. The rows are a ``multiple`` of a number.
    One small copy to the host.
    """
    tail_token = token_ids[document_starts[-2:-1].clamp(max=max(len(token_ids) - 1, 0))]
    numbers = torch.cat([document_starts, context_lengths, tail_token]).cpu().numpy()
    documents = len(context_lengths)
    starts, contexts = numbers[: documents + 1], numbers[documents + 1 : 2 * documents + 1]
    if documents and len(token_ids) > starts[-2] and numbers[-1] == pad_id:
        starts, contexts = starts[:-1], contexts[:-1]
    if token_ids.is_cuda and dtype in (torch.bfloat16, torch.float16):
        return _variable_length(len(token_ids), starts, contexts, token_ids.device, multiple)
    return _bucketed(len(token_ids), starts, contexts, token_ids.device, multiple)


def _bucketed(
    tokens: int, starts: np.ndarray, contexts: np.ndarray, device: torch.device, multiple: int = 1
) -> BucketedLayout:
    lengths = np.diff(starts)
    reads = contexts < lengths
    # Documents with readers apart from those without, which then need at most a key mask; longest first.
    by_size = [int(n) for n in np.lexsort((-lengths, reads)) if lengths[n]]
    buckets: list[Bucket] = []
    order: list[np.ndarray] = []
    real: list[np.ndarray] = []
    rows = first = 0
    while first < len(by_size):
        length, reading = int(lengths[by_size[first]]), reads[by_size[first]]
        shortest = length - max(1, length // PADDING_SHARE)
        last = first
        while last < len(by_size) and lengths[by_size[last]] >= shortest and reads[by_size[last]] == reading:
            last += 1
        members = np.asarray(by_size[first:last])
        place = np.arange(length)
        within = place < lengths[members, None]  # (documents, length)
        order.append((starts[members, None] + np.where(within, place, 0)).ravel())
        real.append(within.ravel())
        hidden_keys = None
        if reading:
            # A context row sees its context, a reader the whole document, nobody sees padding.
            reader = place[:, None] >= contexts[members, None, None]
            visible = within[:, None, :] & (reader | (place < contexts[members, None, None]))
            hidden_keys = torch.from_numpy(~visible)[:, None].to(device)
        elif not within.all():
            hidden_keys = torch.from_numpy(~within)[:, None, None].to(device)
        buckets.append(Bucket(rows, len(members), length, hidden_keys))
        rows += len(members) * length
        first = last
    if rows % multiple:
        filling = multiple - rows % multiple
        order.append(np.full(filling, starts[by_size[0]]))
        real.append(np.zeros(filling, bool))
        buckets.append(Bucket(rows, filling, 1, None))
    shown = np.concatenate(order) if order else np.empty(0, np.int64)
    is_real = np.concatenate(real) if real else np.empty(0, bool)
    places = np.empty(int(lengths.sum()), np.int64)
    places[shown[is_real]] = np.flatnonzero(is_real)
    return BucketedLayout(
        tokens=tokens,
        order=torch.from_numpy(shown).to(device),
        places=torch.from_numpy(places).to(device),
        padding=torch.from_numpy(np.flatnonzero(~is_real)).to(device),
        buckets=tuple(buckets),
    )


def _variable_length(
    tokens: int, starts: np.ndarray, contexts: np.ndarray, device: torch.device, multiple: int = 1
) -> VariableLengthLayout:
    rows = int(starts[-1] - starts[0])
    order = None
    if rows % multiple:
        filling = np.arange(1, multiple - rows % multiple + 1)
        starts = np.concatenate([starts, starts[-1] + filling])
        contexts = np.concatenate([contexts, np.ones_like(filling)])
        order = torch.from_numpy(np.concatenate([np.arange(rows), 0 * filling])).to(device)
    lengths = np.diff(starts)
    if (contexts == lengths).all():
        return VariableLengthLayout(
            tokens, order, rows, _segments(starts[:-1], lengths, starts[:-1], lengths, device), (), None
        )
    calls, written = [], []
    for members, begin, size, keys in (
        (contexts > 0, starts[:-1], contexts, contexts),
        (contexts < lengths, starts[:-1] + contexts, lengths - contexts, lengths),
    ):
        if members.any():
            calls.append(
                _segments(begin[members], size[members], starts[:-1][members], keys[members], device)
            )
            written.append(_rows(begin[members], size[members]))
    places = np.empty(int(lengths.sum()), np.int64)
    places[np.concatenate(written)] = np.arange(len(places))
    return VariableLengthLayout(tokens, order, rows, None, tuple(calls), torch.from_numpy(places).to(device))


def _rows(begin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ..., begin[0] + size[0] - 1, begin[1], ..."""
    ends = np.cumsum(size)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - size), size)


def _segments(
    query_begin: np.ndarray,
    queries: np.ndarray,
    key_begin: np.ndarray,
    keys: np.ndarray,
    device: torch.device,
) -> Segments:
    def offsets(size: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(size)]).astype(np.int32)).to(device)

    return Segments(
        torch.from_numpy(_rows(query_begin, queries)).to(device),
        torch.from_numpy(_rows(key_begin, keys)).to(device),
        offsets(queries),
        offsets(keys),
        int(queries.max(initial=0)),
        int(keys.max(initial=0)),
    )
