"""CAMLM: two [context | readers] documents against one dense four-group mask over the whole pair.

A masked token of one side sees the unmasked tokens of the other side and the masked ones of its own;
an unmasked token sees the unmasked ones of its own side. Nothing else, at any depth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.pretraining import PretrainingModel
from tests.model.dense import dense_hidden

MASK = 100


def pair(seed: int, x: int, y: int) -> tuple[Tensor, Tensor, Tensor]:
    """<s> x </s> </s> y </s> with a quarter of the words masked: ids, side (0 or 1), masked."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(4, MASK, (x + y,), generator=generator)
    ids = torch.cat([torch.tensor([0]), words[:x], torch.tensor([2, 2]), words[x:], torch.tensor([2])])
    side = torch.tensor([0] * (x + 2) + [1] * (y + 2))
    special = (ids == 0) | (ids == 2)
    masked = ~special & (torch.rand(len(ids), generator=generator) < 0.25)
    masked[1] = masked[x + 3] = True  # at least one on either side
    ids[masked] = MASK
    return ids, side, masked


def documents(side: Tensor, masked: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """Places in the pair of [y unmasked | x masked] and [x unmasked | y masked], lengths, context lengths."""
    places, lengths, contexts = [], [], []
    for own in (0, 1):
        context = ((side != own) & ~masked).nonzero()[:, 0]
        readers = ((side == own) & masked).nonzero()[:, 0]
        places += [context, readers]
        lengths.append(len(context) + len(readers))
        contexts.append(len(context))
    return torch.cat(places), lengths, contexts


def test_two_documents_equal_one_dense_four_group_mask(small: Callable[..., PretrainingModel]) -> None:
    model = small()
    streams, starts, contexts, wanted = [], [0], [], []
    positions = []
    for seed, x, y in ((0, 12, 9), (1, 3, 14), (2, 1, 1), (3, 20, 20)):
        ids, side, masked = pair(seed, x, y)
        place = torch.arange(len(ids)) + 2
        same = side[:, None] == side[None]
        # query (row) group -> keys: masked -> own masked, other side's unmasked; unmasked -> own unmasked
        mask = torch.where(masked[:, None], torch.where(masked[None], same, ~same), same & ~masked[None])
        table = model.encoder.embedding.word.weight
        hidden = dense_hidden(model, ids, place, mask)
        in_documents, lengths, context = documents(side, masked)
        wanted.append(model.head.logits(hidden, table)[in_documents])
        streams.append(ids[in_documents])
        positions.append(place[in_documents])
        starts += [starts[-1] + lengths[0], starts[-1] + sum(lengths)]
        contexts += context
    hidden = model.encoder(
        torch.cat(streams), torch.cat(positions), torch.tensor(starts), torch.tensor(contexts)
    )
    ours = model.head.logits(hidden, model.encoder.embedding.word.weight)
    torch.testing.assert_close(ours, torch.cat(wanted), atol=1e-10, rtol=0)


def test_masked_tokens_get_no_gradient_from_their_own_sides_context(
    small: Callable[..., PretrainingModel],
) -> None:
    """Each unmasked token of x has an id of its own, so its row of the table shows what reached it."""
    model = small()
    x, y = list(range(10, 20)), list(range(30, 41))
    ids = torch.tensor([0, *x, 2, 2, *y, 2])
    side = torch.tensor([0] * 12 + [1] * 13)
    masked = torch.zeros(len(ids), dtype=torch.bool)
    masked[[2, 5, 6, 14, 20]] = True
    hidden_ids = set(ids[masked].tolist())
    ids[masked] = MASK
    places, lengths, contexts = documents(side, masked)
    starts = torch.tensor([0, lengths[0], sum(lengths)])
    hidden = model.encoder(ids[places], places + 2, starts, torch.tensor(contexts))
    readers = slice(contexts[0], lengths[0])  # the masked tokens of x
    features = model.head.features(hidden[readers])
    features.square().sum().backward()
    gradient = model.encoder.embedding.word.weight.grad
    assert gradient is not None
    reached = gradient.abs().sum(1)
    assert (reached[[token for token in x if token not in hidden_ids]] == 0).all()
    assert (reached[[token for token in y if token not in hidden_ids]] > 0).all()
    assert reached[0] == 0  # <s> belongs to x
    assert reached[2] > 0  # </s> of y
