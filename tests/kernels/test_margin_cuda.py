"""The CUDA kernels of the margin loss: run on the CPU with emulated threads, compiled by nvcc, and run on a GPU."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.margin import GapSums, MarginForm, MarginLoss
from kernels.margin.cuda import build, library
from tests.kernels.margin_cases import (
    FORMS,
    assert_equal,
    assert_no_worse_than_torch,
    make_triplets,
    solve,
)

EMULATION = Path(__file__).parent / "margin_emulation.h"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The source of the CUDA kernels as a library for the CPU."""
    compiler = build.cpu_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    to = tmp_path_factory.mktemp("emulated") / "margin.so"
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-include", str(EMULATION), "-x", "c++"]
    build.compile_to(to, build.SOURCES / "margin.cu", compiler, flags)
    loaded = library.declare(ctypes.CDLL(str(to)))
    loaded.emulate.argtypes = [ctypes.c_uint64, ctypes.c_int]
    return loaded


class Emulated(torch.autograd.Function):
    """The two launches of the loss, with the emulated library."""

    @staticmethod
    def forward(ctx, loaded, form, anchors, positives, vectors, negatives, teacher_gaps, weights):  # type: ignore[no-untyped-def]
        found = library.solve_rows(
            anchors, positives, vectors, negatives, teacher_gaps, weights, form, True, loaded
        )
        of_vectors = library.solve_vectors(anchors, negatives, found.slopes, len(vectors), loaded)
        ctx.save_for_backward(found.of_anchors, found.of_positives, of_vectors)
        ctx.mark_non_differentiable(found.losses, found.correct, found.sums)
        return (weights.to(found.losses.dtype) * found.losses).sum(), found.losses, found.correct, found.sums

    @staticmethod
    def backward(ctx, upstream, *_):  # type: ignore[no-untyped-def]
        return (
            None,
            None,
            *(upstream.to(stored.dtype) * stored for stored in ctx.saved_tensors),
            None,
            None,
            None,
        )


class OnEmulation:
    """An implementation, of the signature that all have, with threads in the order of a seed."""

    def __init__(self, loaded: ctypes.CDLL, seed: int = 1, barriers: bool = True) -> None:
        self._loaded, self._how = loaded, (seed, barriers)

    def __call__(
        self, anchors: Tensor, positives: Tensor, vectors: Tensor, negatives: Tensor,
        teacher_gaps: Tensor, form: MarginForm, weights: Tensor,
    ) -> MarginLoss:  # fmt: skip
        self._loaded.emulate(*self._how)
        total, rows, correct, sums = Emulated.apply(
            self._loaded, form, anchors, positives, vectors, negatives, teacher_gaps, weights
        )
        return MarginLoss(total, rows, correct, GapSums(*sums.sum(0)))


@pytest.mark.parametrize(("rows", "most"), [(0, 3), (1, 1), (3, 0), (1, 7), (17, 5)])
@pytest.mark.parametrize("absent", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("width", [1, 31, 256, 261])  # a block of columns is 256 wide
@pytest.mark.parametrize("form", ["hinge, clipped", "squared hinge", "softplus"])
def test_emulated_kernels_equal_the_reference(
    rows: int, most: int, absent: float, width: int, form: str, emulated: ctypes.CDLL
) -> None:
    data = make_triplets(rows, most, width=width, absent=absent)
    assert_equal(solve(data, FORMS[form], OnEmulation(emulated)), solve(data, FORMS[form], "reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_emulated_kernels_are_no_worse_than_dense_torch(
    form: str, dtype: torch.dtype, emulated: ctypes.CDLL
) -> None:
    assert_no_worse_than_torch(make_triplets(20, 4, width=70), FORMS[form], OnEmulation(emulated), dtype)


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_the_threads_shows_in_a_bit(seed: int, emulated: ctypes.CDLL) -> None:
    data = make_triplets(10, 5, width=70)
    one, other = (
        solve(data, FORMS["softplus"], OnEmulation(emulated, at), dtype=torch.float32) for at in (99, seed)
    )
    for value, same in zip((*one[:4], *one.gradients), (*other[:4], *other.gradients), strict=True):
        assert torch.equal(value, same)


def test_a_missing_barrier_is_noticed(emulated: ctypes.CDLL) -> None:
    data = make_triplets(10, 5, width=70, absent=0.0)
    truth = solve(data, FORMS["mse"], "reference").gradients[0]
    # Some orders happen to be the right one, and some memory happens to hold what should have been written.
    found = [solve(data, FORMS["mse"], OnEmulation(emulated, seed, barriers=False)) for seed in range(8)]
    assert any(not torch.allclose(result.gradients[0], truth) for result in found)


@pytest.mark.skipif(build.cuda_compiler() is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_nvcc_compiles_every_kernel_within_its_registers_without_spills(
    architecture: int, tmp_path: Path
) -> None:
    said = build.cubin(architecture, tmp_path / "margin.cubin")
    assert (tmp_path / "margin.cubin").stat().st_size > 1000
    assert f"for 'sm_{architecture}'" in said
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+).*?Used (\d+) reg", said, re.DOTALL
    )
    assert len(found) == 2 * len(library.DTYPES)
    # 64 registers a thread leave room for 32 warps on a multiprocessor: the loads of one hide behind the others'.
    # In float64, which is there to be compared with, each number takes two.
    for name, stored, loaded, registers in found:
        assert (stored, loaded) == ("0", "0"), name
        assert int(registers) <= (96 if "_kernelIdE" in name else 64), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", library.DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_on_a_gpu_it_is_no_worse_than_dense_torch_and_the_same_each_time(
    form: str, dtype: torch.dtype
) -> None:
    data = make_triplets(300, 15, vectors=90, width=768)
    on_gpu = type(data)(*(part.cuda() for part in data))
    results = [assert_no_worse_than_torch(on_gpu, FORMS[form], "cuda", dtype) for _ in range(2)]
    for one, other in zip(*(result.gradients for result in results), strict=True):
        assert torch.equal(one, other)
