"""Which parameters are decayed, and whose kernels are used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.recipe import UserError
from model.config import EncoderConfig
from model.pretraining import PretrainingModel
from training.config import OptimizerConfig
from training.optimizer import apex_is_available, build_optimizer, layer_norm_class, use_apex

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def config(implementation: str = "auto") -> OptimizerConfig:
    return OptimizerConfig.model_validate(
        {"implementation": implementation, "weight_decay": 0.1, "epsilon": 1e-7}
    )


def test_matrices_are_decayed_and_biases_norms_and_the_temperature_are_not() -> None:
    shape = EncoderConfig(vocabulary_size=50, layers=1, width=8, heads=2, feed_forward=16, positions=20)
    model = PretrainingModel(shape)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model.named_parameters(), config(), CPU)
    table, matrices, others = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    assert table == {"encoder.embedding.word.weight"} and not table & matrices
    decayed = table | matrices
    assert decayed | others == set(names.values()) and not decayed & others
    assert {"encoder.embedding.word.weight", "encoder.embedding.position.weight"} <= decayed
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert "temperature.logarithm" in others and any("norm" in name for name in others)
    assert optimizer.defaults["eps"] == 1e-7 and tuple(optimizer.defaults["betas"]) == (0.9, 0.98)


def test_a_parameter_that_is_not_trained_is_left_out() -> None:
    frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    trained = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer([("a", frozen), ("b", trained)], config(), CPU)
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 1, 0]


def test_the_token_table_may_have_a_learning_rate_of_its_own() -> None:
    shape = EncoderConfig(vocabulary_size=50, layers=1, width=8, heads=2, feed_forward=16, positions=20)
    for rates, factor in (
        ({"learning_rate": 1e-3}, 1.0),
        ({"learning_rate": 1e-3, "table_learning_rate": 4e-3}, 4.0),
    ):
        settings = OptimizerConfig.model_validate(rates)
        optimizer = build_optimizer(PretrainingModel(shape).named_parameters(), settings, CPU)
        assert [group["rate_factor"] for group in optimizer.param_groups] == pytest.approx([factor, 1, 1])


@pytest.fixture(autouse=True)
def forget_apex() -> Iterator[None]:
    """What a test imported under that name is not there for the next one."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "apex"]:
        del sys.modules[name]


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """A package called apex with these modules, found first."""
    (folder / "apex").mkdir()
    for name in ("__init__", *modules):
        (folder / "apex" / f"{name}.py").write_text("FusedAdam = FusedLayerNorm = object\n")
    monkeypatch.syspath_prepend(folder)


def test_without_apex_auto_takes_torch_and_asking_for_apex_is_an_error() -> None:
    assert not apex_is_available()
    assert not use_apex(config(), GPU)
    assert layer_norm_class(config(), CPU) is torch.nn.LayerNorm
    with pytest.raises(UserError, match="apex is not installed.*built from source"):
        use_apex(config("apex"), GPU)


def test_nvidias_apex_is_used_on_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, "optimizers", "normalization")
    assert use_apex(config(), GPU) and not use_apex(config(), CPU) and not use_apex(config("torch"), GPU)
    assert use_apex(config("apex"), GPU)
    with pytest.raises(UserError, match="apex runs on GPUs only"):
        use_apex(config("apex"), CPU)
    assert layer_norm_class(config(), GPU) is not torch.nn.LayerNorm


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_other_package_of_that_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    package(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="is not NVIDIA's.*pip uninstall apex"):
        use_apex(config(), device)
    assert not use_apex(config("torch"), device)  # who says torch is not asked
