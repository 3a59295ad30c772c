"""Attention inside each document of a packed stream: readers see their document, contexts only their context.

The definition, for a query i and a key j of one document with c context tokens::

    i sees j  iff  j < c  or  i >= c                      out_i = sum_j softmax_j(q_i . k_j / sqrt(W)) v_j

Letters: R rows of the layout, H heads, W width of a head, B documents of a bucket, L its length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.layout import Bucket, Layout, Segments, VariableLengthLayout
from model.rows import pick

# Up to this many tokens a document's attention is three matrix products of whole buckets; longer ones go to
# torch's kernel, which keeps no weights. That kernel is made for long sequences: forward and backward on one
# core, bfloat16 (float32), take 97 (32) ms with it and 22 (26) ms with products on 8,192 tokens in documents
# of 5 to 60, 4 heads of 64; on 4,096 tokens with 12 heads 156 (108) and 31 (64) ms at length 64, 128 (147)
# and 62 (150) at 256.
SHORT = 256
# Rows of a bucket that are computed at once, so that queries, keys, scores and their gradients stay in the
# cache.
ROWS_AT_ONCE = 1024


def attention(projected: Tensor, layout: Layout) -> Tensor:
    """Queries, keys and values (R, 3, H, W) -> outputs (R, H, W), rows in the order of ``layout``."""
    if isinstance(layout, VariableLengthLayout):
        return _variable_length(projected, layout)
    if all(bucket.length <= SHORT for bucket in layout.buckets):
        return _short_documents(projected, layout.buckets)
    parts = projected.split([bucket.rows for bucket in layout.buckets])  # one split: its backward is one copy
    return torch.cat([_bucket(part, bucket) for part, bucket in zip(parts, layout.buckets, strict=True)])


def _bucket(part: Tensor, bucket: Bucket) -> Tensor:
    """(B * L, 3, H, W) -> (B * L, H, W) of one bucket."""
    if bucket.length <= SHORT:
        return _short_documents(part, (bucket._replace(start=0),))
    queries, keys, values = part.unflatten(0, (bucket.documents, bucket.length)).permute(2, 0, 3, 1, 4)
    visible = None if bucket.hidden_keys is None else ~bucket.hidden_keys
    outputs = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)
    return outputs.transpose(1, 2).flatten(0, 1)


def _short_documents(projected: Tensor, buckets: tuple[Bucket, ...]) -> Tensor:
    """(R, 3, H, W) -> (R, H, W) of all buckets."""
    outputs: Tensor = _ShortDocuments.apply(projected, buckets)
    return outputs


class _ShortDocuments(torch.autograd.Function):
    """The definition, bucket by bucket, with its gradient (dA: gradient of the loss with respect to A)::

    P = softmax(Q K^T / sqrt(W))   dP = dO V^T   dS = P * (dP - rowsum(P * dP))
    O = P V                        dQ = dS K / sqrt(W)   dK = dS^T Q / sqrt(W)   dV = P^T dO
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, buckets: tuple[Bucket, ...]) -> Tensor:
        scale = projected.shape[-1] ** -0.5
        outputs = torch.empty_like(projected[:, 0], memory_format=torch.contiguous_format)
        saved = []
        for bucket in _pieces(buckets):
            operands = _by_head(projected, bucket)
            queries, keys, values = operands
            scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(scale)
            if bucket.hidden_keys is not None:
                scores.unflatten(0, (bucket.documents, -1)).masked_fill_(bucket.hidden_keys, float("-inf"))
            weights = torch.softmax(scores, -1)
            _rows(outputs, bucket).copy_(_by_row(torch.bmm(weights, values), bucket))
            saved += [
                operands,
                weights,
            ]  # the operands are a copy by now: projected itself is not needed again
        ctx.save_for_backward(*saved)
        ctx.buckets = buckets
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        scale = outer.shape[-1] ** -0.5
        gradient = outer.new_empty(len(outer), 3, *outer.shape[1:])
        saved = iter(ctx.saved_tensors)
        for bucket, (queries, keys, values), weights in zip(_pieces(ctx.buckets), saved, saved, strict=True):
            (d_outputs,) = _by_head(outer[:, None], bucket)
            d_weights = torch.bmm(d_outputs, values.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            into = _rows(gradient, bucket)
            torch.mul(_by_row(torch.bmm(d_scores, keys), bucket), scale, out=into[:, :, 0])
            torch.mul(_by_row(torch.bmm(d_scores.transpose(1, 2), queries), bucket), scale, out=into[:, :, 1])
            into[:, :, 2].copy_(_by_row(torch.bmm(weights.transpose(1, 2), d_outputs), bucket))
        return gradient, None


def _pieces(buckets: tuple[Bucket, ...]) -> list[Bucket]:
    """The buckets cut into pieces of about ROWS_AT_ONCE rows."""
    pieces = []
    for bucket in buckets:
        step = max(1, ROWS_AT_ONCE // bucket.length)
        for first in range(0, bucket.documents, step):
            documents = min(step, bucket.documents - first)
            hidden = bucket.hidden_keys
            if hidden is not None:
                hidden = hidden[first : first + documents]
            pieces.append(Bucket(bucket.start + first * bucket.length, documents, bucket.length, hidden))
    return pieces


def _rows(stream: Tensor, bucket: Bucket) -> Tensor:
    """The bucket's view (B, L, ...) of a stream (R, ...)."""
    rows = stream[bucket.start : bucket.start + bucket.rows]
    return rows.unflatten(0, (bucket.documents, bucket.length))


def _by_head(stream: Tensor, bucket: Bucket) -> Tensor:
    """(R, parts, H, W) -> (parts, B * H, L, W), a copy."""
    return _rows(stream, bucket).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)


def _by_row(by_head: Tensor, bucket: Bucket) -> Tensor:
    """(B * H, L, W) -> (B, L, H, W), a view."""
    return by_head.unflatten(0, (bucket.documents, -1)).transpose(1, 2)


def _variable_length(projected: Tensor, layout: VariableLengthLayout) -> Tensor:
    """torch's kernel: one call if every document is all context, else contexts first, then readers."""
    queries, keys, values = projected.unbind(1)
    if layout.everyone is not None:
        return _call(queries, keys, values, layout.everyone) if layout.rows else queries
    outputs = [
        _call(pick(queries, call.query_rows), pick(keys, call.key_rows), pick(values, call.key_rows), call)
        for call in layout.calls
    ]
    assert layout.places is not None
    return pick(torch.cat(outputs), layout.places)


def varlen_attn(*arguments: Any) -> Any:
    """torch's kernel; imported at its first call, since it brings torch's compiler, which only a GPU needs."""
    from torch.nn.attention.varlen import varlen_attn as kernel

    return kernel(*arguments)


def _call(queries: Tensor, keys: Tensor, values: Tensor, call: Segments) -> Tensor:
    outputs = varlen_attn(
        queries, keys, values, call.query_starts, call.key_starts, call.longest_query, call.longest_key
    )
    assert isinstance(outputs, Tensor)  # a tuple only with return_aux
    return outputs
