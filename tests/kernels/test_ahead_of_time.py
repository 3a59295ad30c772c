"""Triton kernels compiled for devices that are not here: they fit the device and stay within their budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernels import aot
from kernels.aot import TARGETS, AotVariant, Compiled, compile_variant, excesses
from tests.kernels import example_triton


@pytest.fixture(scope="module")
def variants() -> dict[str, AotVariant]:
    return aot.all_variants()


def example(**changes: object) -> AotVariant:
    return AotVariant(**example_triton.variant(**changes))


@pytest.mark.parametrize(
    ("target", "instruction"),
    [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA"), ("gfx942", "v_mfma")],
)
def test_an_example_compiles_to_tensor_core_instructions(target: str, instruction: str) -> None:
    variant = example(m=128, n=128, k=64, warps=8)
    compiled = compile_variant(variant, target)
    assert compiled.tensor_cores[instruction] > 0
    assert 0 < compiled.shared <= TARGETS[target].shared_limit
    assert 16 < compiled.registers <= 512 and compiled.stack == 0
    assert not excesses(variant, target, compiled, compiled.budget())


def test_registers_that_are_spilled_are_seen() -> None:
    assert compile_variant(example(m=128, n=64, k=16, warps=1, stages=1), "sm_80").stack > 0
    assert compile_variant(example(m=256, n=128, k=16, warps=1, stages=1), "gfx942").stack > 0


def test_a_block_that_is_larger_than_the_shared_memory_is_refused() -> None:
    variant = example(m=128, n=128, k=128, warps=8, stages=4)
    compiled = compile_variant(variant, "sm_80")  # the compiler says nothing
    assert any("the device has" in said for said in excesses(variant, "sm_80", compiled, compiled.budget()))


BUDGET = {"registers": 100, "stack": 0, "shared": 1000, "tensor_cores": {"HGMMA": 4}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"registers": 101}, "registers 101, the budget allows 100"),
        ({"stack": 8}, "stack 8"),
        ({"shared": 1001}, "shared 1001"),
        ({"tensor_cores": {"HMMA": 64}}, "HGMMA no longer in the code"),
        ({"tensor_cores": {}}, "no tensor-core instruction"),
    ],
)
def test_more_than_the_budget_is_said(change: dict[str, object], said: str) -> None:
    within = Compiled(**BUDGET, assembly="")
    assert not excesses(example(), "sm_90", within, BUDGET)
    assert not excesses(example(), "sm_90", within._replace(registers=90, shared=10), BUDGET)
    assert said in "\n".join(excesses(example(), "sm_90", within._replace(**change), BUDGET))


def test_a_kernel_that_is_not_in_the_budget_is_said_with_the_command() -> None:
    (said,) = excesses(example(), "sm_90", Compiled(**BUDGET, assembly=""), {})
    assert "python -m kernels.aot --write" in said


def test_a_signature_that_does_not_fit_the_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="the kernel's arguments are a, b, out"):
        compile_variant(example()._replace(constants={}), "sm_90")


def matrix() -> list[Any]:
    """(kernel, target) of the budget: by default what trains, bfloat16, for one target in turns; the rest is slow."""
    found = []
    for number, (name, of) in enumerate(aot.read_budget().items()):
        for place, target in enumerate(of):
            marks = [] if "bf16" in name and place == number % len(of) else [pytest.mark.slow]
            found.append(pytest.param(name, target, id=f"{name}-{target}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "target"), matrix())
def test_a_kernel_stays_within_its_device_and_its_budget(
    name: str, target: str, variants: dict[str, AotVariant]
) -> None:
    compiled = compile_variant(variants[name], target)
    assert not excesses(variants[name], target, compiled, aot.read_budget()[name][target])


def test_the_budget_has_next_to_no_spills_and_tensor_cores_of_each_devices_generation() -> None:
    generation = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
    for name, of in aot.read_budget().items():
        for target, allowed in of.items():
            assert allowed["stack"] <= 16, (name, target)
            assert allowed["shared"] <= TARGETS[target].shared_limit, (name, target)
            assert not allowed["tensor_cores"] or generation[target] in allowed["tensor_cores"], (
                name,
                target,
            )


def test_a_budget_that_is_written_is_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aot, "BUDGET", tmp_path / "budget.json")
    variant = example(targets=("sm_80",))._replace(name="a.product")
    monkeypatch.setattr(aot, "all_variants", lambda: {variant.name: variant})
    assert aot.main([]) == 1 and "not in the budget" in capsys.readouterr().err
    assert aot.main(["--write"]) == 0
    assert aot.read_budget() == {"a.product": {"sm_80": compile_variant(variant, "sm_80").budget()}}
    assert aot.main([]) == 0 and "a.product  sm_80" in capsys.readouterr().out
    assert aot.main(["--only", "b", "--write"]) == 0 and "a.product" in aot.read_budget()
    monkeypatch.setattr(aot, "all_variants", dict)
    assert aot.main(["--write"]) == 0 and not aot.read_budget()


def test_the_budget_speaks_of_the_kernels_that_are_there(variants: dict[str, AotVariant]) -> None:
    assert {(name, target) for name, of in aot.read_budget().items() for target in of} == {
        (name, target) for name, variant in variants.items() for target in variant.targets
    }
