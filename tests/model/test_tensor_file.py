"""The file of tensors is the safetensors library's; what is no such file is refused by name and reads nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from model.tensor_file import TensorFile, TensorFileError, pieces, write_tensors

TENSORS = {
    "double": torch.randn(3, 2, dtype=torch.float64),
    "matrix": torch.randn(5, 7),
    "scalar": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "größe": torch.randn(11).bfloat16(),
    "flags": torch.tensor([True, False]),
    "half": torch.randn(3).half(),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    chunks = ((name, piece) for name, tensor in TENSORS.items() for piece in tensor.reshape(-1).split(2))
    write_tensors(tmp_path / "file", shapes, chunks, {"format": "pt"})
    return tmp_path / "file"


def test_the_library_reads_what_is_written_here_and_the_other_way(path: Path) -> None:
    theirs = load_file(path)
    assert theirs.keys() == TENSORS.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    save_file(TENSORS, path.with_name("theirs"))
    for file in (TensorFile(path), TensorFile(path.with_name("theirs"))):
        assert all(torch.equal(file.read(name), tensor) for name, tensor in TENSORS.items())


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    from data.store import sha256_of

    shapes = {"a": (torch.float32, (40,))}
    sealed = write_tensors(tmp_path / "f", shapes, (("a", piece) for piece in pieces(torch.arange(40.0))))
    assert sealed == ((tmp_path / "f").stat().st_size, sha256_of(tmp_path / "f"))


@pytest.mark.parametrize(
    "chunks", [[], [("a", torch.zeros(3))], [("b", torch.zeros(4))], [("a", torch.zeros(5))]]
)
def test_what_is_not_what_was_announced_is_not_written(tmp_path: Path, chunks: Any) -> None:
    with pytest.raises((AssertionError, StopIteration, KeyError)):
        write_tensors(tmp_path / "f", {"a": (torch.float32, (4,))}, chunks)


def test_a_range_is_read_into_memory_that_is_there(path: Path) -> None:
    room = torch.zeros(10)
    TensorFile(path).read_into([("matrix", 6, room[2:5]), ("matrix", 34, room[9:])])
    flat = TENSORS["matrix"].flatten()
    assert torch.equal(room[2:5], flat[6:9]) and room[9] == flat[34] and not room[[0, 1, 5, 6, 7, 8]].any()


def header(entries: Any, data: int = 16, *, length: int | None = None) -> bytes:
    encoded = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + bytes(data)


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


MALICIOUS: dict[str, bytes] = {
    "empty": b"",
    "shorter than a length": b"\x01\x00",
    "a header longer than the file": header(one(), length=2**40),
    "a header longer than any": header(one(), length=2**63),
    "a header of nothing": header(b""),
    "no JSON": header(b"{'a': __import__('os')}"),
    "not UTF-8": header(b'{"\xff": 1}'),
    "a list": header([1, 2]),
    "deeply nested": header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a pickle": b"cos\nsystem\n(S'true'\ntR." + bytes(64),
    "beyond the file": header(one(data_offsets=[0, 4096], shape=[1024])),
    "before the data": header(one(data_offsets=[-16, 0])),
    "backwards": header(one(data_offsets=[16, 0])),
    "overlapping": header(one() | {"b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "overlapping by half": header(one() | {"b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, 24),
    "a gap": header(one(data_offsets=[4, 20]), 20),
    "bytes of no tensor": header(one(), 17),
    "more elements than bytes": header(one(shape=[2**62, 2**62])),
    "a shape that overflows to the size": header(one(shape=[2**32, 2**32 + 4])),
    "a negative shape": header(one(shape=[-2, -2])),
    "a fraction": header(one(shape=[4.0])),
    "a truth": header(one(shape=[4, True])),
    "an unknown type": header(one(dtype="pickle")),
    "no type": header({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "three offsets": header(one(data_offsets=[0, 8, 16])),
    "a name twice": header(json.dumps(one()).encode()[:-1] + b"," + json.dumps(one()).encode()[1:]),
    "metadata that are no texts": header(one() | {"__metadata__": {"x": {"y": 1}}}),
}  # fmt: skip


@pytest.mark.parametrize("what", MALICIOUS)
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(MALICIOUS[what])
    with pytest.raises(TensorFileError, match="evil.safetensors"):
        TensorFile(path)


def test_the_same_header_without_the_malice_is_taken(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(header(one()))
    assert torch.equal(TensorFile(tmp_path / "f").read("a"), torch.zeros(4))


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_file_that_changes_under_the_reader_is_noticed(path: Path, damage: str) -> None:
    file = TensorFile(path)
    act: Callable[[], Any] = (
        path.unlink if damage == "gone" else lambda: path.write_bytes(path.read_bytes()[:-30])
    )
    act()
    with pytest.raises((TensorFileError, OSError)):
        [file.read(name) for name in TENSORS]


def test_the_library_refuses_the_worst_of_them_too(tmp_path: Path) -> None:
    """That the table holds real faults: what the library itself calls broken is among them."""
    refused = 0
    for what, content in MALICIOUS.items():
        (tmp_path / "f").write_bytes(content)
        try:
            load_file(tmp_path / "f")
        except (SafetensorError, OSError, RecursionError, ValueError):
            refused += 1
        except BaseException:  # noqa: B036  # panics of the library
            refused += 1
        else:
            assert what in ("a name twice", "a truth", "metadata that are no texts"), what
    assert refused >= len(MALICIOUS) - 2
