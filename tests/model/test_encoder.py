"""What may and what may not reach a token's hidden state, exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.pretraining import PretrainingModel
from tests.model.conftest import make_config
from tests.model.dense import dense_hidden, visible

Build = Callable[..., PretrainingModel]
LENGTHS = [9, 4, 9, 21, 1, 13]
CONTEXTS = [9, 4, 5, 8, 1, 0]
TAIL = 40


def stream() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = torch.randint(4, 100, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([ids, torch.ones(TAIL, dtype=torch.long)])
    positions = torch.cat([torch.arange(length) + 2 for length in [*LENGTHS, TAIL]])
    starts = torch.tensor([0, *LENGTHS, TAIL]).cumsum(0)
    return ids, positions, starts, torch.tensor([*CONTEXTS, TAIL])


def embedded(model: PretrainingModel) -> list[Tensor]:
    """The embedded tokens of the next forward, in the layout's order, as leaves of the graph."""
    caught: list[Tensor] = []

    def catch(_: object, __: object, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    model.encoder.embedding.register_forward_hook(catch)
    return caught


def gradient_by_place(model: PretrainingModel, of: slice) -> Tensor:
    """(T,) sum of absolute gradients of hidden states ``of`` with respect to each embedded token."""
    caught = embedded(model)
    ids, positions, starts, contexts = stream()
    from model.layout import BucketedLayout, make_layout

    layout = make_layout(ids, starts, contexts, pad_id=1, dtype=torch.float64)
    assert isinstance(layout, BucketedLayout)
    hidden = model.encoder(ids, positions, starts, contexts)
    weight = torch.randn(hidden[of].shape, dtype=hidden.dtype, generator=torch.Generator().manual_seed(2))
    (hidden[of] * weight).sum().backward()
    assert caught[0].grad is not None
    by_row = caught[0].grad.abs().sum(1)
    assert (by_row[layout.padding] == 0).all()
    return by_row[layout.places]


def test_hidden_states_equal_the_dense_encoder(small: Build) -> None:
    model = small()
    ids, positions, starts, contexts = stream()
    ours = model.encoder(ids, positions, starts, contexts)
    oracle = dense_hidden(model, ids, positions, visible(starts.tolist(), contexts.tolist(), len(ids)))
    torch.testing.assert_close(ours[:-TAIL], oracle[:-TAIL], atol=1e-11, rtol=0)


@pytest.mark.parametrize("checkpoint_layers", [False, True])
@pytest.mark.parametrize("read", [[], [3], [40, 0, 13, 56, 21, 22], list(range(57))])
def test_states_that_are_read_are_those_of_the_whole(
    small: Build, read: list[int], checkpoint_layers: bool
) -> None:
    model, places = small(), torch.tensor(read, dtype=torch.int64)
    model.encoder.checkpoint_layers = checkpoint_layers
    weight = torch.randn(len(read), model.config.width, dtype=torch.float64)

    def states_and_gradients(some: bool) -> list[Tensor]:
        model.zero_grad()
        states = model.encoder(*stream(), read=places) if some else model.encoder(*stream())[places]
        (states * weight).sum().backward()
        found = [parameter.grad for parameter in model.encoder.parameters()]
        return [states, *(gradient for gradient in found if gradient is not None)]

    some, whole = states_and_gradients(True), states_and_gradients(False)
    assert len(some) == len(whole)
    for ours, reference in zip(some, whole, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-14)


def test_the_last_layer_goes_on_with_what_is_read(small: Build) -> None:
    model = small()
    rows: dict[str, int] = {}
    for name, module in model.encoder.layers.named_modules():
        module.register_forward_pre_hook(lambda _, inputs, name=name: rows.update({name: len(inputs[0])}))
    model.encoder(*stream(), read=torch.tensor([3, 5]))
    last = len(model.encoder.layers) - 1
    for part in ("attention.output", "feed_forward.inner", "feed_forward.outer"):
        assert rows[f"{last}.{part}"] == 2 < rows[f"{last - 1}.{part}"]
    assert rows[f"{last}.attention.projection"] == rows[f"{last - 1}.attention.projection"]


def test_gradients_of_all_parameters_equal_the_dense_encoder(small: Build) -> None:
    model = small()
    ids, positions, starts, contexts = stream()
    real = len(ids) - TAIL
    weight = torch.randn(real, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (model.encoder(ids, positions, starts, contexts)[:real] * weight).sum().backward()
    ours = {name: p.grad for name, p in model.encoder.named_parameters()}
    model.zero_grad(set_to_none=True)
    mask = visible(starts.tolist(), contexts.tolist(), len(ids))
    (dense_hidden(model, ids, positions, mask)[:real] * weight).sum().backward()
    for name, parameter in model.encoder.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-10, rtol=1e-10, msg=name)


def test_tail_of_padding_comes_out_zero_and_changes_nothing(small: Build) -> None:
    model = small()
    ids, positions, starts, contexts = stream()
    with_tail = model.encoder(ids, positions, starts, contexts)
    without = model.encoder(ids[:-TAIL], positions[:-TAIL], starts[:-1], contexts[:-1])
    assert torch.equal(with_tail[:-TAIL], without)
    assert (with_tail[-TAIL:] == 0).all()


@pytest.mark.parametrize("number", range(len(LENGTHS)))
def test_no_gradient_reaches_another_document(small: Build, number: int) -> None:
    first = sum(LENGTHS[:number])
    document = slice(first, first + LENGTHS[number])
    gradient = gradient_by_place(small(), document)
    assert (gradient[document] > 0).all()
    outside = torch.ones(len(gradient), dtype=torch.bool)
    outside[document] = False
    assert (gradient[outside] == 0).all()


def test_no_gradient_reaches_a_reader_from_its_context(small: Build) -> None:
    first, context, end = sum(LENGTHS[:3]), sum(LENGTHS[:3]) + CONTEXTS[3], sum(LENGTHS[:4])
    gradient = gradient_by_place(small(), slice(first, context))
    assert (gradient[first:context] > 0).all()
    assert (gradient[context:end] == 0).all()
    from_readers = gradient_by_place(small(), slice(context, end))
    assert (from_readers[first:end] > 0).all()


def test_a_document_comes_out_the_same_wherever_it_stands(small: Build) -> None:
    model = small()
    ids, positions, starts, contexts = stream()
    packed = model.encoder(ids, positions, starts, contexts)
    for n, (start, end) in enumerate(zip(starts[:-2], starts[1:-1], strict=True)):
        rows = slice(int(start), int(end))
        alone = model.encoder(
            ids[rows], positions[rows], torch.tensor([0, rows.stop - rows.start]), contexts[n : n + 1]
        )
        torch.testing.assert_close(packed[rows], alone, atol=1e-11, rtol=0)


def test_checkpointed_layers_give_the_same_gradients(small: Build) -> None:
    model = small(dropout=0.1)
    gradients = []
    for checkpointed in (False, True):
        model.encoder.checkpoint_layers = checkpointed
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        model.encoder(*stream()).square().sum().backward()
        gradients.append([p.grad for p in model.encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_acts_in_training_alone(small: Build) -> None:
    model = small(dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(model.encoder(*stream()), model.encoder(*stream()))
    model.eval()
    assert torch.equal(model.encoder(*stream()), model.encoder(*stream()))


def test_a_stream_without_tokens_goes_through(small: Build) -> None:
    model = small()
    hidden = model.encoder(
        *(torch.zeros(n, dtype=torch.long) for n in (0, 0, 1, 0))
    )  # no ids, no positions, starts [0], no contexts
    assert hidden.shape == (0, 32)
    hidden.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.encoder.parameters())


def with_languages(small: Build, **changes: float) -> PretrainingModel:
    """A small model whose table of languages is far from its initial zeros."""
    return small(languages=5, **changes)


def test_languages_that_are_told_are_added_before_the_norm_and_the_others_are_not(small: Build) -> None:
    model = with_languages(small)
    lengths = [7, 4, 9]
    ids, positions = torch.randint(4, 100, (20,)), torch.cat([torch.arange(n) + 2 for n in lengths])
    starts, contexts = torch.tensor([0, 7, 11, 20]), torch.tensor([7, 2, 9])
    languages = torch.tensor([3] * 7 + [0] * 2 + [4] * 2 + [-1] * 9)
    hidden = model.encoder(ids, positions, starts, contexts, languages)
    # The same as an encoder without the table, whose token vectors already hold the languages'.
    table = model.encoder.embedding.language.weight
    told = torch.where((languages >= 0)[:, None], table[languages], 0.0)
    embedding = model.encoder.embedding
    tokens = embedding.word.weight[ids] + told
    plain = PretrainingModel(make_config(vocabulary_size=20), seed=3).double()
    state = {name: tensor for name, tensor in model.state_dict().items() if "language" not in name}
    state["encoder.embedding.word.weight"] = tokens.detach()
    state["head.bias"] = torch.zeros(20)
    plain.load_state_dict(state)
    wanted = plain.encoder(torch.arange(2, 22) - 2, positions, starts, contexts)
    torch.testing.assert_close(hidden, wanted, atol=1e-12, rtol=0)
    untold = model.encoder(ids, positions, starts, contexts)
    torch.testing.assert_close(hidden[11:], untold[11:], atol=1e-12, rtol=0)
    assert (hidden[:11] - untold[:11]).abs().max() > 0.01


def test_the_table_of_languages_begins_with_zeros_and_changes_no_other_weight() -> None:
    plain, taught = (
        PretrainingModel(make_config(), seed=5),
        PretrainingModel(make_config(languages=7), seed=5),
    )
    table = taught.encoder.embedding.language.weight
    assert table.shape == (7, 32) and not table.any()
    mine, theirs = dict(plain.named_parameters()), dict(taught.named_parameters())
    assert set(theirs) - set(mine) == {"encoder.embedding.language.weight"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
