"""Damage to a token store never goes unseen; and opening one costs nothing, however many records it has."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.config import DataConfig
from data.prepare import prepare
from data.recipe import UserError
from data.store import TokenStore, sha256_of, write_manifest
from data.store_writer import COLUMNS


@pytest.fixture(scope="module")
def tiny(small_store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose files are small enough to be read thousands of times: other bytes, the same kinds of files."""
    folder = tmp_path_factory.mktemp("tiny") / "store"
    shutil.copytree(small_store.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for name, file in manifest["files"].items():
        path = folder / name
        path.write_bytes(path.read_bytes()[:600])
        file |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").unlink()
    write_manifest(folder, {key: value for key, value in manifest.items() if key != "digest"})
    TokenStore.open(folder).verify()
    return folder


@pytest.mark.parametrize("trials", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flipped_byte_and_every_truncation_is_found(tiny: Path, trials: int) -> None:
    random = np.random.default_rng(trials)
    files = sorted(path for path in tiny.rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.suffix for path in files} >= {".arrow", ".json", ".tsv"}
    for trial in range(trials):
        path = files[random.integers(len(files))]
        content = path.read_bytes()
        place = int(random.integers(len(content)))
        if trial % 4 == 0:
            changed = content[:place]
        else:
            changed = bytearray(content)
            changed[place] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        with pytest.raises(UserError) as error:
            TokenStore.open(tiny).verify()
        assert path.name in str(error.value)
        path.write_bytes(content)
    TokenStore.open(tiny).verify()


def test_a_manifest_with_another_space_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "store"))
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\t", 1))
    json.loads(path.read_bytes())
    with pytest.raises(UserError, match="changed after it was written"):
        TokenStore.open(folder)


def test_changed_inputs_are_named(configure: Callable[..., DataConfig]) -> None:
    config = configure()
    prepare(config, workers=1)
    corpus = Path(config.corpora["rows"].path)
    corpus.write_bytes(corpus.read_bytes()[:-2].rsplit(b"\n", 1)[0] + b"\n")
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        prepare(config, workers=1)


class _Sparse:
    """A file that leaves holes where long runs of zeros are written."""

    closed = False

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._end = 0

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        if view.nbytes < 1 << 20:
            self._file.seek(self._end)
            self._file.write(view)
        self._end += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._end

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.truncate(self._end)
        self._file.close()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_store_of_a_thousand_million_records_opens_in_a_second_and_a_hundred_megabytes(
    small_store: TokenStore, tmp_path: Path
) -> None:
    count = 10**9
    folder = Path(shutil.copytree(small_store.folder, tmp_path / "store"))
    zeros = tmp_path / "zeros"
    with zeros.open("wb") as file:
        file.truncate(8 * (count + 1))
    mapped = pa.memory_map(str(zeros)).read_buffer()
    columns = {
        name: pa.Array.from_buffers(COLUMNS[name][1], count, [None, mapped.slice(0, count * size)])
        for name, size in (("language", 2), ("record", 8), ("group", 8), ("length", 4))
    }
    ids = pa.Array.from_buffers(pa.int32(), 0, [None, mapped.slice(0, 0)])
    columns["ids"] = pa.Array.from_buffers(pa.large_list(pa.int32()), count, [None, mapped], children=[ids])
    columns["text"] = pa.Array.from_buffers(pa.large_utf8(), count, [None, mapped, mapped.slice(0, 0)])
    start = {"start": pa.Array.from_buffers(pa.int64(), count + 1, [None, mapped])}
    for name, arrays in (("sentences.arrow", columns), ("sentences.records.arrow", start)):
        batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
        sink = _Sparse(folder / name)
        with pa.ipc.new_file(pa.PythonFile(sink, "w"), batch.schema) as writer:
            writer.write_batch(batch)
        sink.close()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["corpora"]["sentences"] |= {"segments": count, "records": count}
    for name, file in manifest["files"].items():
        file["bytes"] = (folder / name).stat().st_size
    write_manifest(folder, {key: value for key, value in manifest.items() if key != "digest"})
    before, begin = _resident(), time.perf_counter()
    corpus = TokenStore.open(folder).corpora["sentences"]
    assert corpus.records == count and len(corpus.segment_lengths) == count
    assert len(corpus.segment_groups) == count and len(corpus.record_starts) == count + 1
    assert corpus.text(count - 1) == "" and len(corpus.ids(count // 2)) == 0
    assert time.perf_counter() - begin < 1 and _resident() - before < 100e6
