"""A model that is cut over tensor ranks is the whole model: weights, outputs, gradients, generated ids, dropout."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor

from model import pretraining
from model.generation import Decoding
from model.layout import make_layout
from model.parallel.collectives import own_rows
from model.parallel.plan import SPLITS, planned_split
from model.parallel.split import split_of
from model.parallel.topology import Axis
from model.pretraining import PretrainingModel
from tests.model.conftest import make_config
from tests.model.test_pretraining import Microbatch, microbatch
from tests.ranks import run_on_ranks

CONFIG = make_config(languages=3)  # 101 ids: no multiple of 2 or 4
BATCHES = [
    microbatch(),
    microbatch(sentences=0, predicted=0),
    microbatch(sentences=0, predicted=0, documents=False),
]


def whole_model(**settings: Any) -> PretrainingModel:
    """Every parameter, norms and biases too, is far from its initial value."""
    model = PretrainingModel(CONFIG, seed=3, **settings)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "temperature" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.double()


def cut_model(whole: PretrainingModel, axis: Axis, **settings: Any) -> PretrainingModel:
    """The same weights on this rank."""
    model = PretrainingModel(CONFIG, seed=4, tensor=axis, **settings).double()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            own[name].copy_(part(own[name], parameter, axis))
    return model


def part(own: Tensor, whole: Tensor, axis: Axis) -> Tensor:
    split = split_of(own)
    return whole if split is None else split.take(whole, axis.rank, axis.size)


def languages_told(batch: Microbatch) -> Microbatch:
    batch.language_ids = torch.arange(len(batch.token_ids)) % 3
    batch.language_shown = torch.arange(len(batch.token_ids)) % 5 > 1
    return batch


def loss_of(model: PretrainingModel, batch: Microbatch) -> tuple[Tensor, Any]:
    """A number that depends on every output, each in its own way."""
    output = model(languages_told(batch), torch.arange(1.0, len(batch.targets) + 1))
    weights = torch.arange(output.sentence_vectors.numel()).double().cos().view_as(output.sentence_vectors)
    return output.prediction_total + (
        output.sentence_vectors * weights
    ).sum() * output.inverse_temperature, output


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_begin_with_the_parts_of_one_model(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PretrainingModel(CONFIG, seed=5)
    monkeypatch.setattr(pretraining, "DRAWN_AT_ONCE", 1000)  # in pieces, where the whole was one

    def of_rank(group: Any) -> set[str]:
        axis = Axis.of(group)
        model = PretrainingModel(CONFIG, seed=5, tensor=axis)
        own = dict(model.named_parameters())
        assert list(own) == [name for name, _ in whole.named_parameters()]
        for name, parameter in whole.named_parameters():
            assert torch.equal(own[name], part(own[name], parameter, axis)), name
        cut = {name for name in own if split_of(own[name]) is not None}
        assert cut == {name for name in own if hasattr(own[name], "tensor_model_parallel")}
        assert sum(own[name].numel() for name in cut) * ranks < 1.05 * sum(
            dict(whole.named_parameters())[name].numel() for name in cut
        )
        return cut

    cut, *_ = run_on_ranks(of_rank, ranks)
    shapes = {name: tuple(parameter.shape) for name, parameter in whole.named_parameters()}
    assert cut == {name for name in shapes if planned_split(name, shapes[name]) is not None}
    for pattern in SPLITS:  # none of the table is without a parameter
        assert any(fnmatch.fnmatchcase(name, pattern) for name in cut), pattern


@pytest.mark.parametrize(("rows", "width"), [(101, 32), (250, 33), (5, 3), (17, 1), (16, 16), (999, 7)])
@pytest.mark.parametrize("at_once", [1, 600, 2**24])
def test_a_matrix_that_is_drawn_in_pieces_holds_the_numbers_of_one_that_is_not(
    rows: int, width: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.empty(rows, width).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(pretraining, "DRAWN_AT_ONCE", at_once)
    drawn = torch.empty(rows, width)
    pretraining._draw(drawn, torch.Generator().manual_seed(1), 0.02, None, Axis())
    assert torch.equal(drawn, whole)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
def test_outputs_and_gradients_are_those_of_the_whole_model(ranks: int) -> None:
    truths = {}
    for number, batch in enumerate(BATCHES[: 3 if ranks == 2 else 1]):
        whole = whole_model()
        loss, output = loss_of(whole, batch)
        loss.backward()
        truths[number] = (whole, output, {name: p.grad for name, p in whole.named_parameters()})

    def of_rank(group: Any) -> None:
        axis = Axis.of(group)
        cases = [(sequence, False, number) for sequence in (False, True) for number in truths]
        cases += [(sequence, True, 0) for sequence in (False, True)][: 2 if ranks == 2 else 0]
        for sequence, checkpoint_layers, number in cases:
            whole, true, gradients = truths[number]
            model = cut_model(whole, axis, sequence=sequence, checkpoint_layers=checkpoint_layers)
            loss, output = loss_of(model, BATCHES[number])
            loss.backward()
            torch.testing.assert_close(output[0], true[0], atol=1e-10, rtol=1e-10)
            assert torch.equal(output.predictions_correct, true.predictions_correct)
            torch.testing.assert_close(output.sentence_vectors, true.sentence_vectors, atol=1e-12, rtol=0)
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                torch.testing.assert_close(
                    parameter.grad, part(parameter, gradients[name], axis),
                    atol=1e-10, rtol=1e-9,
                )  # fmt: skip

    run_on_ranks(of_rank, ranks)


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
def test_generated_ids_are_those_of_the_whole_model(ranks: int) -> None:
    whole, batch = whole_model(), languages_told(microbatch())
    allowed = torch.zeros(3, 101, dtype=torch.bool)
    allowed[0, [2, 30, 31, 99]] = True
    allowed[1, 60:80] = True
    ways = [
        Decoding(range(4, 100)),
        Decoding(range(4, 20)),  # all of them on the first rank
        Decoding(range(4, 100), 5, 1.5),
        Decoding(range(4, 7), 5, 1.5),  # fewer than k
        Decoding(range(4, 100), 5, 3.0, allowed),
        Decoding(range(4, 100), 1, 1.0, allowed),
    ]
    truths = [whole(batch, decoding=way) for way in ways]
    assert len({tuple(ids.tolist()) for ids in truths}) > 3

    def of_rank(group: Any) -> None:
        for sequence in (False, True):
            model = cut_model(whole, Axis.of(group), sequence=sequence)
            for way, truth in zip(ways, truths, strict=True):
                assert torch.equal(model(batch, decoding=way), truth), way

    run_on_ranks(of_rank, ranks)


@pytest.mark.ranks
def test_of_equal_scores_on_several_ranks_the_lowest_id_is_taken() -> None:
    def of_rank(group: Any) -> list[int]:
        table, bias = torch.zeros(5, 2), torch.zeros(5)
        bias[3] = 1.0  # ids 3 and 8
        languages, draws = torch.zeros(4, dtype=torch.long), torch.zeros(4)
        decoding = Decoding(range(1, 10))
        return decoding.choose(torch.ones(4, 2), table, bias, languages, draws, Axis.of(group)).tolist()

    assert run_on_ranks(of_rank, 2) == [[3] * 4] * 2


@pytest.mark.ranks
@pytest.mark.parametrize("sequence", [False, True])
def test_dropout_is_equal_on_what_all_ranks_hold_and_another_on_rows_of_their_own(sequence: bool) -> None:
    """With the rows of one document of 64 equal tokens, all that differs between rows is what was dropped."""
    config = make_config(dropout=0.5, layers=1)
    tokens = 64
    ids = torch.full((tokens,), 9)
    arguments = (ids, torch.full((tokens,), 2), torch.tensor([0, tokens]), torch.tensor([tokens]))

    def of_rank(group: Any) -> tuple[Tensor, Tensor, Tensor, int]:
        axis = Axis.of(group)
        model = PretrainingModel(config, tensor=axis, sequence=sequence)
        dropped = []
        model.encoder.embedding.dropout.register_forward_hook(lambda _, __, out: dropped.append(out == 0))
        torch.manual_seed(5)
        hidden = model.encoder(*arguments)
        torch.manual_seed(6)
        model.encoder(*arguments)
        torch.manual_seed(5)
        model.encoder(*arguments)
        assert torch.equal(dropped[0], dropped[2]) and not torch.equal(dropped[0], dropped[1])
        model.eval()
        assert not (
            model.encoder.embedding(ids, torch.full((tokens // (axis.size if sequence else 1),), 2)) == 0
        ).any()
        torch.manual_seed(5)
        model.train()
        model.encoder(*arguments)
        return hidden.detach(), dropped[0], torch.rand(1), tokens

    (hidden, mine, next_one, _), (other_hidden, theirs, other_next, _) = run_on_ranks(of_rank, 2)
    assert torch.equal(hidden, other_hidden)  # what leaves the layers is whole on both
    assert torch.equal(next_one, other_next)  # and the common stream stays in step
    assert torch.equal(mine, theirs) is not sequence
    assert len(mine) == (tokens // 2 if sequence else tokens)
    for masks in (mine, theirs):
        assert 0.45 < masks.double().mean() < 0.55
    if sequence:  # independent: half of the places agree
        assert 0.45 < (mine == theirs).double().mean() < 0.55


@pytest.mark.ranks
@pytest.mark.parametrize("sequence", [False, True])
def test_layers_that_are_computed_twice_drop_the_same_again(sequence: bool) -> None:
    config = make_config(dropout=0.5)

    def of_rank(group: Any) -> None:
        found = []
        for checkpoint_layers in (False, True):
            model = PretrainingModel(
                config, tensor=Axis.of(group), sequence=sequence, checkpoint_layers=checkpoint_layers
            ).double()
            torch.manual_seed(5)
            loss_of(model, microbatch())[0].backward()
            found.append({name: p.grad for name, p in model.named_parameters()})
        for name, gradient in found[0].items():
            torch.testing.assert_close(gradient, found[1][name], atol=1e-12, rtol=1e-12)

    run_on_ranks(of_rank, 2)


@pytest.mark.ranks
def test_what_is_kept_for_the_backward_is_shared_among_the_ranks() -> None:
    """Of one layer, in rows of the stream times width: what dropout, norms and layers save, without weights."""
    config = make_config(layers=1, dropout=0.1, feed_forward=128, width=32)
    rows = 64
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 32, generator=generator)
    contexts = torch.tensor([rows])
    layout = make_layout(
        torch.full((rows,), 9), torch.tensor([0, rows]), contexts, pad_id=1, dtype=torch.float32
    )

    def kept(axis: Axis, sequence: bool) -> float:
        model = PretrainingModel(config, tensor=axis, sequence=sequence)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and tensor.dim() < 4:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        own = own_rows(hidden, axis) if sequence else hidden
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model.encoder.layers[0](own.clone().requires_grad_(), layout)
        assert out.requires_grad
        return sum(found.values()) / (4 * rows * 32)

    def of_rank(group: Any) -> tuple[float, float]:
        return kept(Axis.of(group), False), kept(Axis.of(group), True)

    whole = kept(Axis(), False)
    for shared, all_shared in run_on_ranks(of_rank, 2):
        print(whole, shared, all_shared)
        assert all_shared < shared < whole
        assert all_shared <= 0.55 * whole
