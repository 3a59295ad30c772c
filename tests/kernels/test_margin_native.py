"""The margin loss built by this machine's C++ compiler: against its definition, and how it is built and chosen."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import kernels.margin
from kernels.implementation import ImplementationUnavailable
from kernels.margin import MarginForm, adaptive_margin_loss
from kernels.margin.cuda import build, library, operator
from tests.kernels.margin_cases import (
    FORMS,
    Result,
    assert_equal,
    assert_no_worse_than_torch,
    make_rows,
    make_triplets,
    solve,
)

pytestmark = pytest.mark.skipif(build.cpu_compiler() is None, reason="no C++ compiler on this machine")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LARGE = make_triplets(64, 15, vectors=70, width=1100)  # where "auto" takes it


def assert_same_bits(one: Result, other: Result) -> None:
    for value, same in zip((*one[:4], *one.gradients), (*other[:4], *other.gradients), strict=True):
        assert torch.equal(value, same)


@pytest.mark.parametrize(("rows", "most"), [(0, 0), (0, 3), (1, 1), (3, 0), (1, 7), (17, 5), (40, 1)])
@pytest.mark.parametrize("absent", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("width", [1, 5, 64, 131])  # a block of columns is 64 wide
@pytest.mark.parametrize("form", FORMS)
def test_it_equals_the_reference(rows: int, most: int, absent: float, width: int, form: str) -> None:
    data = make_triplets(rows, most, width=width, absent=absent)
    assert_equal(solve(data, FORMS[form], "native"), solve(data, FORMS[form], "reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [5, 768])
def test_low_precision_is_no_worse_than_dense_torch(form: str, width: int, dtype: torch.dtype) -> None:
    assert_no_worse_than_torch(make_triplets(40, 6, vectors=90, width=width), FORMS[form], "native", dtype)


def test_a_vector_may_be_the_negative_of_many_or_of_one_twice_or_of_none() -> None:
    data = make_triplets(30, 6, vectors=9)
    data.negatives[:] = 3
    data.negatives[:5] = 7
    result = solve(data, FORMS["softplus"], "native")
    assert_equal(result, solve(data, FORMS["softplus"], "reference"))
    assert result.gradients[2].any(1).tolist() == [vector in (3, 7) for vector in range(9)]


def test_rows_may_lie_apart_in_memory() -> None:
    data = make_triplets(12, 4, width=8)
    apart = [torch.zeros(len(part), 19, dtype=part.dtype)[:, 5:13].copy_(part) for part in data[:3]]
    across = [part.T.contiguous().T for part in data[:3]]
    expected = solve(data, FORMS["mse"], "reference")
    for sides in (apart, across):
        assert not any(side.is_contiguous() for side in sides)
        assert_equal(
            solve(data._replace(**dict(zip(data._fields, sides, strict=False))), FORMS["mse"], "native"),
            expected,
        )


def test_a_row_may_begin_beyond_two_billion_numbers() -> None:
    # Memory that is never touched costs nothing.
    far = torch.empty(70_000 * 32_768, dtype=torch.bfloat16).as_strided((70_000, 8), (32_768, 1))
    data = make_triplets(5, 2, vectors=2, width=8, absent=0.0)
    sides = [part.bfloat16() for part in data[:3]]
    far[[0, -1]] = sides[2]
    near, there = (
        operator.explicit(*sides[:2], vectors, numbers, data.teacher_gaps, FORMS["softplus"], data.weights)
        for vectors, numbers in ((sides[2], data.negatives), (far, data.negatives * 69_999))
    )
    assert data.negatives.any() and torch.equal(near.rows, there.rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_each_time_with_any_number_of_threads(dtype: torch.dtype) -> None:
    data = make_triplets(200, 9, vectors=20, width=70)
    once = solve(data, FORMS["softplus"], "native", dtype=dtype)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert_same_bits(solve(data, FORMS["softplus"], "native", dtype=dtype), once)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["anchors", "positives", "vectors"])
def test_what_is_not_a_number_reaches_the_loss(place: str, form: str, dtype: torch.dtype) -> None:
    data = make_triplets(8, 3, absent=0.0)
    getattr(data, place)[data.negatives[4, 1] if place == "vectors" else 4, 2] = float("nan")
    result, truth = (solve(data, FORMS[form], name, dtype=dtype) for name in ("native", "reference"))
    assert result.total.isnan() and result.rows[4].isnan()
    assert torch.equal(result.rows.isnan(), truth.rows.isnan())
    assert result.gradients[0][4].isnan().any() or result.gradients[1][4].isnan().any()


def test_only_the_backward_scales_and_it_may_run_twice() -> None:
    data = make_triplets(6, 3)
    sides = [part.clone().requires_grad_() for part in data[:3]]
    loss = adaptive_margin_loss(
        *sides, *data[3:5], form=FORMS["mse"], weights=data.weights, implementation="native"
    )
    once = torch.autograd.grad(loss.total, sides, retain_graph=True)
    for gradient, tripled in zip(once, torch.autograd.grad(3 * loss.total, sides), strict=True):
        torch.testing.assert_close(tripled, 3 * gradient)
    assert not any(part.requires_grad for part in (loss.rows, loss.correct, *loss.gaps))


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_torch_finds_no_fault_with_the_operators(wanted: bool, dtype: torch.dtype) -> None:
    data = make_triplets(6, 3)
    sides = [part.to(dtype).requires_grad_(wanted) for part in data[:3]]
    torch.library.opcheck(operator.explicit_margin, (*sides, *data[3:], *FORMS["softplus"], wanted))
    slopes = torch.randn(6, 3, dtype=torch.promote_types(dtype, torch.float32))
    torch.library.opcheck(operator.gradient_of_vectors, (sides[0].detach(), data.negatives, slopes, 9))


def test_gradients_are_those_of_finite_differences() -> None:
    data = make_triplets(4, 3)

    def total(*sides: torch.Tensor) -> torch.Tensor:
        return adaptive_margin_loss(
            *sides, *data[3:5], form=FORMS["softplus"], weights=data.weights, implementation="native"
        ).total

    assert torch.autograd.gradcheck(total, tuple(part.clone().requires_grad_() for part in data[:3]))


def test_a_library_is_built_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "CPU_FLAGS", ("-O0", *build.CPU_FLAGS[1:]))  # faster to build
    (tmp_path / "calque").mkdir()
    killed = tmp_path / "calque" / "margin-cpp-of-a-build-that-was-killed.so"
    killed.write_bytes(b"half a library")
    first = build.cpu_library()
    assert first.parent == tmp_path / "calque" and sorted(first.parent.iterdir()) == sorted([first, killed])
    written = first.stat().st_mtime_ns
    assert build.cpu_library() == first and first.stat().st_mtime_ns == written
    for change in ({"CPU_FLAGS": (*build.CPU_FLAGS, "-g")}, {"_processor": lambda: "another kind"}):
        with monkeypatch.context() as other:
            for name, value in change.items():
                other.setattr(build, name, value)
            other.setattr(build, "compile_to", lambda to, *_: to.write_bytes(b""))
            assert build.cpu_library() != first


def test_a_compiler_that_fails_is_refused_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "CPU_FLAGS", ("-fno-such-flag",))
    with pytest.raises(ImplementationUnavailable, match="no-such-flag"):
        build.cpu_library()
    assert not list((tmp_path / "calque").iterdir())


def test_auto_does_without_a_library_that_can_not_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A file where the cache folder would be.
    (tmp_path / "calque").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load_cpu.cache_clear()
    kernels.margin._native_loads.cache_clear()
    try:
        with pytest.raises(ImplementationUnavailable, match="set XDG_CACHE_HOME"):
            solve(LARGE, FORMS["mse"], "native")
        with caplog.at_level(logging.WARNING):
            found = [solve(LARGE, FORMS["mse"], "auto") for _ in range(2)]
        assert sum("auto does without the native" in text for text in caplog.messages) == 1
        assert_same_bits(found[0], solve(LARGE, FORMS["mse"], "streaming"))
    finally:
        library.load_cpu.cache_clear()
        kernels.margin._native_loads.cache_clear()


def test_auto_takes_it_where_there_is_enough_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str]] = []
    choose = kernels.margin.choose

    def spy(operation: str, requested: str, available: list[str], recommended: str) -> str:
        taken.append((recommended, requested))
        return choose(operation, requested, available, recommended)

    monkeypatch.setattr(kernels.margin, "choose", spy)
    small = make_triplets(4, 3)
    assert_same_bits(solve(LARGE, FORMS["mse"], "auto"), solve(LARGE, FORMS["mse"], "native"))
    assert_same_bits(solve(small, FORMS["mse"], "auto"), solve(small, FORMS["mse"], "streaming"))
    solve(LARGE, FORMS["mse"], "auto", dtype=torch.float16)
    assert [best for best, requested in taken if requested == "auto"] == ["native", "streaming", "streaming"]


def test_it_is_refused_where_it_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImplementationUnavailable, match="choose one of reference, streaming, or 'auto'"):
        solve(make_rows(4), FORMS["mse"], "native")
    with pytest.raises(ImplementationUnavailable, match="'cuda'.* native"):
        solve(make_triplets(4, 3), FORMS["mse"], "cuda")
    monkeypatch.setattr(build, "cpu_compiler", lambda: None)
    with pytest.raises(ImplementationUnavailable, match="choose one of reference, streaming, or 'auto'"):
        solve(make_triplets(4, 3), FORMS["mse"], "native")
    solve(LARGE, MarginForm("hinge"), "auto")
