"""Damage to a token store never goes unseen; and opening one costs nothing, however many records it has."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from data.checksums import BLOCK, digest_of, digest_of_file, sums_beside
from data.config import DataConfig
from data.preparation import prepare
from data.recipe import UserError
from data.store import TokenStore, write_manifest


def read_everything(folder: Path) -> None:
    """As training does: open, then columns, by single places and whole."""
    store = TokenStore.open(folder)
    assert store.ids_of_languages().any()
    for corpus in store.corpora.values():
        for segment in (0, corpus.segments - 1):
            corpus.ids(segment), corpus.text(segment), corpus.segment_groups[segment], corpus.row_of(segment)
        for column in (
            corpus.segment_language, corpus.segment_record, corpus.segment_lengths, corpus.segment_groups,
            corpus.record_starts, *corpus.id_columns, *corpus._text,
        ):  # fmt: skip
            np.asarray(column)


def changes(path: Path, random: np.random.Generator, truncate: bool) -> Callable[[], None]:
    """Damage a file at one place; returns what mends it."""
    size = path.stat().st_size
    place = int(random.integers(size))
    with path.open("r+b") as file:
        file.seek(place)
        if truncate:
            rest = file.read()
            file.truncate(place)
        else:
            rest = file.read(1)
            file.seek(place)
            file.write(bytes([rest[0] ^ int(random.integers(1, 256))]))

    def mend() -> None:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(rest)

    return mend


@pytest.mark.parametrize("trials", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_flipped_byte_and_every_truncation_is_found_at_open_or_read(
    small_store: TokenStore, tmp_path: Path, trials: int
) -> None:
    folder = Path(shutil.copytree(small_store.folder, tmp_path / "store"))
    random = np.random.default_rng(trials)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.suffix for path in paths} >= {".arrow", ".json", ".tsv", ".sums"}
    for trial in range(trials):
        path = paths[random.integers(len(paths))]
        mend = changes(path, random, truncate=trial % 4 == 0)
        with pytest.raises(UserError, match=path.name):
            read_everything(folder)
        with pytest.raises(UserError, match=path.name):
            TokenStore.open(folder).verify()
        mend()
    read_everything(folder)


def test_damage_is_found_where_it_is_read_and_only_there(configure: Callable[..., DataConfig]) -> None:
    config = configure()
    path = Path(config.corpora["rows"].path or "")
    path.write_bytes(path.read_bytes() * 40)
    store = prepare(config, workers=1)
    path = store.folder / "rows.arrow"
    middle = store.corpora["rows"].segments // 2
    ends, values = store.corpora["rows"]._text
    at = values._start + int(ends[middle])
    content = bytearray(path.read_bytes())
    assert len(content) > 20 * BLOCK
    content[at] ^= 1
    path.write_bytes(content)
    corpus = TokenStore.open(store.folder).corpora["rows"]
    assert corpus.text(0) and len(corpus.ids(middle))
    with pytest.raises(UserError, match=r"rows.arrow: bytes \d+ to \d+ are not those.*--rebuild") as error:
        corpus.text(middle)
    start, end = (int(number) for number in re.findall(r"(\d+)", str(error.value).split("bytes")[1])[:2])
    assert start <= at < end <= start + BLOCK


def test_a_manifest_with_another_space_is_refused(small_store: TokenStore, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_store.folder, tmp_path / "store"))
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


def sums_of_sparse(path: Path) -> np.ndarray:
    """The sums of a file, of which holes are not read."""
    size = path.stat().st_size
    zeros = xxhash.xxh3_64_intdigest(bytes(BLOCK))
    sums = np.full(-(-size // BLOCK), zeros, "<u8")
    with path.open("rb") as file:
        start = 0
        while start < size:
            try:
                start = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:  # holes to the end
                start = size - 1
            start -= start % BLOCK
            sums[start // BLOCK] = xxhash.xxh3_64_intdigest(os.pread(file.fileno(), BLOCK, start))
            start += BLOCK
    return sums


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _read() -> int:
    """Bytes that this process has asked the system to read."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_store_of_a_thousand_million_records_opens_in_a_second_with_little_of_it_read(
    small_store: TokenStore, tmp_path: Path
) -> None:
    count = 10**9
    manifest = json.loads(small_store.folder.joinpath("manifest.json").read_bytes())
    folder = Path(shutil.copytree(small_store.folder, tmp_path / "store"))
    zeros = tmp_path / "zeros"
    with zeros.open("wb") as file:
        file.truncate(8 * (count + 1))
    mapped = pa.memory_map(str(zeros)).read_buffer()
    columns = {
        name: pa.Array.from_buffers(kind, count, [None, mapped.slice(0, count * kind.bit_width // 8)])
        for name, kind in (
            ("language", pa.uint16()),
            ("record", pa.int64()),
            ("group", pa.uint64()),
            ("length", pa.int32()),
        )
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
        sums = sums_of_sparse(folder / name)
        sums_beside(folder / name).write_bytes(sums.tobytes())
        manifest["files"][name]["digest"] = digest_of(sums)
    manifest["corpora"]["sentences"] |= {"segments": count, "records": count}
    for name, file in manifest["files"].items():
        file["bytes"] = (folder / name).stat().st_size
        if not name.endswith(".arrow"):
            file["digest"] = digest_of_file(folder / name)
    write_manifest(folder, {key: value for key, value in manifest.items() if key != "digest"})
    before, begin, worked = _resident(), _read(), time.process_time()
    corpus = TokenStore.open(folder).corpora["sentences"]
    assert corpus.records == count and len(corpus.segment_lengths) == count
    assert len(corpus.segment_groups) == count and len(corpus.record_starts) == count + 1
    assert corpus.text(count - 1) == "" and len(corpus.ids(count // 2)) == 0
    assert (
        corpus.segment_lengths[count // 3] == 0
        and not corpus.segment_groups[np.arange(0, count, count // 50)].any()
    )
    # Of 46 GB: neither read nor, as pages of a mapped file are, resident.
    assert time.process_time() - worked < 1
    assert _read() - begin < 100e6 and _resident() - before < 100e6
