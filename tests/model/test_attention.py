"""Attention over packed documents against one dense mask; the table holds the odd shapes."""

from __future__ import annotations

import pytest
import torch

import model.attention
from model.attention import attention
from model.layout import BucketedLayout, make_layout
from tests.model.dense import dense_attention, visible

PAD = 1
# name -> (lengths, contexts, padding in the tail)
LAYOUTS = {
    "one document": ([7], [7], 0),
    "one token": ([1], [1], 0),
    "single tokens": ([1, 1, 1, 1], [1, 1, 1, 1], 0),
    "equal lengths": ([5, 5, 5], [5, 5, 5], 0),
    "unequal lengths": ([3, 17, 4, 16, 15, 1, 30], [3, 17, 4, 16, 15, 1, 30], 0),
    "long tail": ([6, 2], [6, 2], 120),
    "tail of one": ([6, 2], [6, 2], 1),
    "only a tail": ([], [], 8),
    "readers": ([9, 9], [4, 6], 0),
    "readers of many shapes": ([9, 8, 12, 12, 5, 3], [4, 6, 1, 11, 2, 2], 3),
    "all readers": ([6, 4], [0, 0], 2),
    "all kinds": ([6, 6, 6, 13, 12, 1, 1], [6, 3, 0, 13, 5, 1, 0], 5),
    "empty document": ([4, 0, 3], [4, 0, 3], 0),
    "long and short": ([40, 3, 39, 4], [40, 1, 10, 4], 0),
}


def laid_out(name: str) -> tuple[torch.Tensor, list[int], list[int]]:
    lengths, contexts, tail = LAYOUTS[name]
    ids = torch.full((sum(lengths) + tail,), 5)
    ids[sum(lengths) :] = PAD
    lengths, contexts = (lengths + [tail], contexts + [tail]) if tail else (lengths, contexts)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return ids, starts, contexts


@pytest.mark.parametrize("short", [0, 20, 256], ids=["torch's kernel", "both", "products"])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_and_its_gradient_equal_one_dense_mask(
    name: str, multiple: int, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.attention, "SHORT", short)
    monkeypatch.setattr(model.attention, "ROWS_AT_ONCE", 12)  # several pieces per bucket
    ids, starts, contexts = laid_out(name)
    real = sum(LAYOUTS[name][0])
    layout = make_layout(
        ids, torch.tensor(starts), torch.tensor(contexts), pad_id=PAD, dtype=torch.float64, multiple=multiple
    )
    assert len(layout.arrange(ids)) % multiple == 0
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(len(ids), 3, 2, 8, dtype=torch.float64, generator=generator)
    weight = torch.randn(len(ids), 16, dtype=torch.float64, generator=generator)
    packed, dense = stream.clone().requires_grad_(), stream.clone().requires_grad_()

    ours = layout.restore(attention(layout.arrange(packed), layout).flatten(1))
    oracle = dense_attention(dense, visible(starts, contexts, len(ids)))[:real].flatten(1)

    assert ours.shape == (len(ids), 16)
    torch.testing.assert_close(ours[:real], oracle, atol=1e-12, rtol=0)
    assert (ours[real:] == 0).all()
    (ours * weight).sum().backward()
    (oracle * weight[:real]).sum().backward()
    torch.testing.assert_close(packed.grad, dense.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("short", [0, 256], ids=["torch's kernel", "products"])
def test_bfloat16_is_within_its_rounding_of_float64(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.attention, "SHORT", short)
    ids, starts, contexts = laid_out("all kinds")
    layout = make_layout(ids, torch.tensor(starts), torch.tensor(contexts), pad_id=PAD, dtype=torch.bfloat16)
    stream = torch.randn(len(ids), 3, 2, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed, dense = stream.clone().requires_grad_(), stream.double().requires_grad_()
    ours = layout.restore(attention(layout.arrange(packed), layout).flatten(1))
    oracle = layout.restore(
        layout.arrange(dense_attention(dense, visible(starts, contexts, len(ids))).flatten(1))
    )
    torch.testing.assert_close(ours.double(), oracle, atol=2e-2, rtol=2e-2)
    ours.sum().backward()
    oracle.sum().backward()
    assert packed.grad is not None and dense.grad is not None
    torch.testing.assert_close(packed.grad.double(), dense.grad, atol=6e-2, rtol=3e-2)


def test_padding_tail_is_never_computed() -> None:
    ids, starts, contexts = laid_out("long tail")
    layout = make_layout(ids, torch.tensor(starts), torch.tensor(contexts), pad_id=PAD, dtype=torch.float32)
    assert isinstance(layout, BucketedLayout)
    assert len(layout.order) == 8


def test_buckets_are_few_and_pad_little_on_documents_of_real_lengths() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = (5 + 55 * torch.rand(300, generator=generator) ** 2).long()
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    layout = make_layout(torch.full((int(starts[-1]),), 5), starts, lengths, pad_id=PAD, dtype=torch.float32)
    assert isinstance(layout, BucketedLayout)
    assert len(layout.order) <= 1.05 * int(starts[-1])
    assert len(layout.buckets) <= 20
    # A bucket of one length needs no mask; the others hide padding alone, not query by query.
    shapes = {bucket.hidden_keys.shape[2] for bucket in layout.buckets if bucket.hidden_keys is not None}
    assert shapes == {1}


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYOUTS)
def test_variable_length_kernel_on_a_gpu_equals_one_dense_mask(name: str) -> None:
    ids, starts, contexts = laid_out(name)
    real = sum(LAYOUTS[name][0])
    layout = make_layout(
        ids.cuda(),
        torch.tensor(starts).cuda(),
        torch.tensor(contexts).cuda(),
        pad_id=PAD,
        dtype=torch.bfloat16,
    )
    assert not isinstance(layout, BucketedLayout)
    stream = torch.randn(len(ids), 3, 2, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed, dense = stream.cuda().requires_grad_(), stream.double().requires_grad_()
    ours = layout.restore(attention(layout.arrange(packed), layout).flatten(1))
    oracle = dense_attention(dense, visible(starts, contexts, len(ids)))[:real].flatten(1)
    torch.testing.assert_close(ours[:real].double().cpu(), oracle, atol=2e-2, rtol=2e-2)
    assert (ours[real:] == 0).all()
    ours.sum().backward()
    oracle.sum().backward()
    assert packed.grad is not None and dense.grad is not None
    torch.testing.assert_close(packed.grad.double().cpu(), dense.grad, atol=6e-2, rtol=3e-2)


@pytest.mark.parametrize("multiple", [1, 4, 64])
@pytest.mark.parametrize("name", LAYOUTS)
def test_variable_length_calls_pick_the_same_keys_as_the_dense_mask(
    name: str, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop with the meaning of the GPU's kernel takes its place: the offsets are checked without a GPU."""
    from model.layout import _variable_length

    def by_document(q, k, v, query_starts, key_starts, longest_query, longest_key):  # type: ignore[no-untyped-def]
        assert query_starts.dtype == key_starts.dtype == torch.int32
        assert int(query_starts.diff().max()) <= longest_query and int(key_starts.diff().max()) <= longest_key
        outputs = []
        bounds = zip(query_starts, query_starts[1:], key_starts, key_starts[1:], strict=False)
        for q0, q1, k0, k1 in (map(int, bound) for bound in bounds):
            weights = torch.einsum("qhw,khw->hqk", q[q0:q1], k[k0:k1]) / q.shape[-1] ** 0.5
            outputs.append(torch.einsum("hqk,khw->qhw", weights.softmax(-1), v[k0:k1]))
        return torch.cat(outputs)

    monkeypatch.setattr(model.attention, "varlen_attn", by_document)
    ids, starts, contexts = laid_out(name)
    real = sum(LAYOUTS[name][0])
    documents = len(LAYOUTS[name][0])
    layout = _variable_length(
        len(ids),
        torch.tensor(starts[: documents + 1]).numpy(),
        torch.tensor(contexts[:documents], dtype=torch.long).numpy(),
        torch.device("cpu"),
        multiple,
    )
    assert len(layout.arrange(ids)) == -(-real // multiple) * multiple
    stream = torch.randn(len(ids), 3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stream.requires_grad_()
    ours = layout.restore(attention(layout.arrange(stream), layout).flatten(1))
    oracle = dense_attention(stream, visible(starts, contexts, len(ids)))[:real].flatten(1)
    torch.testing.assert_close(ours[:real], oracle, atol=1e-12, rtol=0)
    assert (ours[real:] == 0).all()
    weights = torch.randn(oracle.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine, true = (
        torch.autograd.grad((value * weights).sum(), stream, retain_graph=True)[0]
        for value in (ours[:real], oracle)
    )
    torch.testing.assert_close(mine, true, atol=1e-12, rtol=0)
