"""An interrupted preparation: killed at whatever moment it goes on, and ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import journal, spool
from data.config import DataConfig
from data.preparation import prepare
from data.prepare import main
from data.recipe import UserError
from data.store import TokenStore

Configure = Callable[..., DataConfig]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def quiet(message: str) -> None:
    """Says nothing."""


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs, but for what the system does."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> Iterator[list[int]]:
    """Ends the work at its ``moment``-th change of the disk: before a note or a rename, or amid an append."""
    changes = [0]

    def dies(function: Callable[..., Any], halfway: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **others: Any) -> Any:
            changes[0] += 1
            if changes[0] == moment:
                if halfway is not None:
                    halfway(*arguments)
                raise Killed
            return function(*arguments, **others)

        return wrapped

    def half_an_append(of: spool.Spool, name: str, rows: Any) -> None:
        with of.path(name).open("ab") as file:
            file.write(bytes(rows)[: len(bytes(rows)) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(journal, "SECONDS_BETWEEN", 0.0)
        patch.setattr(os, "fsync", lambda file: None)  # the machine does not go down
        patch.setattr("data.build.SEGMENTS_PER_CHUNK", 200)
        patch.setattr("data.cleaning.examination.TEXTS_PER_CHUNK", 400)
        patch.setattr(spool.Spool, "append", dies(spool.Spool.append, half_an_append))
        patch.setattr(Path, "replace", dies(Path.replace))
        patch.setattr(Path, "rename", dies(Path.rename))
        yield changes


RULES = {"duplicates": "exact", "held_out": "exact", "unicode": "nfc"}


@pytest.mark.parametrize("moments", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_ended_at_any_change_of_the_disk_it_goes_on_to_the_same_bytes(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: int
) -> None:
    config = configure(cleaning=RULES)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(rows.read_bytes() * 2 + b"\xff\n[]\n")  # with duplicates and rejects
    with killed_at(monkeypatch, 0) as changes:
        whole = files(prepare(config, workers=1, say=quiet).folder)
    assert changes[0] > 150
    for moment in np.linspace(1, changes[0], moments, dtype=int).tolist():
        shutil.rmtree(config.store)
        with killed_at(monkeypatch, moment), pytest.raises(Killed):
            prepare(config, workers=1, say=quiet)
        with killed_at(monkeypatch, moment // 2 + 1):  # and again on the way
            try:
                prepare(config, workers=1, say=quiet)
            except Killed:
                pass
        said: list[str] = []
        assert files(prepare(config, workers=1, say=said.append).folder) == whole, moment
        if moment > 1:  # else there was nothing yet
            assert "going on with the preparation" in said[0] or "already prepared" in said[0]
        assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == ["store"]


def command(path: str, workers: int) -> list[str]:
    """The command, with a note after every chunk."""
    code = (
        "import sys; from data import build, journal; from data.prepare import main;"
        "journal.SECONDS_BETWEEN = 0.0; build.SEGMENTS_PER_CHUNK = 300; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", code, "--recipe", path, "--workers", str(workers)]


def test_killed_with_its_workers_it_leaves_no_store_and_no_process_and_goes_on(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(cleaning=RULES)
    content = (tmp_path / "rows.jsonl").read_bytes()
    varied = (content.replace(b'"en": "', b'"en": "%d ' % i) for i in range(12))
    (tmp_path / "rows.jsonl").write_bytes(b"".join(varied))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    noted = tmp_path / "store.partial" / "work" / "corpora" / "rows.json"
    for workers in (2, 4):
        process = subprocess.Popen(
            command(str(path), workers), start_new_session=True, stderr=subprocess.DEVNULL
        )
        try:
            before = noted.read_bytes() if noted.exists() else b""
            while not noted.exists() or noted.read_bytes() == before:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()  # -9
            process.wait()
            assert not (tmp_path / "store").exists()
            deadline = time.monotonic() + 30
            with pytest.raises(ProcessLookupError):  # the group is empty: the workers have followed
                while time.monotonic() < deadline:
                    os.killpg(process.pid, 0)
                    time.sleep(0.05)
        finally:
            process.kill()
    assert 0 < json.loads(noted.read_bytes())["items"] < 720
    resumed = files(prepare(config, workers=2, say=quiet).folder)
    shutil.rmtree(config.store)
    assert files(prepare(config, workers=1, say=quiet).folder) == resumed


def interrupted(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(monkeypatch, 60), pytest.raises(Killed):
        prepare(config, workers=1, say=quiet)


def test_an_interrupted_preparation_of_other_inputs_is_named_and_thrown_away_only_when_asked(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lexicon = tmp_path / "words.tsv"
    lexicon.write_text("de\tone\teins\n")
    config = configure(lexicons=[{"path": str(lexicon)}])
    interrupted(config, monkeypatch)
    before = files(tmp_path / "store.partial")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"t": {"en": "one more", "de": "noch eins"}}\n')
    lexicon.write_text("de\tone\teine\n")
    changed = configure(lexicons=[{"path": str(lexicon)}], maximum_tokens=32)
    with pytest.raises(UserError) as error:
        prepare(changed, workers=1)
    said = str(error.value)
    assert "store.partial: an interrupted preparation of other inputs" in said and "--rebuild" in said
    assert "maximum_tokens: was 64, is 32" in said and "sentences.jsonl" not in said
    assert "rows.jsonl: has changed" in said and "words.tsv: has changed" in said
    assert files(tmp_path / "store.partial") == before
    rebuilt = prepare(changed, workers=1, rebuild=True, say=quiet)
    assert rebuilt.corpora["rows"].records == 61
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == ["store"]


def test_another_tokenizer_is_named(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "tokenizer"
    shutil.copytree(configure().tokenizer.path or "", own)
    config = configure(tokenizer={"path": str(own)})
    interrupted(config, monkeypatch)
    content = json.loads((own / "tokenizer.json").read_bytes())
    content["model"]["vocab"][300][1] -= 1
    (own / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer.json: has changed"):
        prepare(config, workers=1, say=quiet)


def test_a_corpus_that_changes_while_it_is_read_is_noticed(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()

    def groups_and_a_change(*arguments: Any) -> int:
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write("\n")
        return number_groups(*arguments)

    from data.build import number_groups

    monkeypatch.setattr("data.build.number_groups", groups_and_a_change)
    with pytest.raises(UserError, match="changed meanwhile; start again\n.*rows.jsonl: has changed"):
        prepare(config, workers=1, say=quiet)
    assert not (tmp_path / "store").exists() and not (tmp_path / "store.partial").exists()


def test_two_processes_do_not_prepare_one_store(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()

    def groups_beside_another(*arguments: Any) -> int:
        with pytest.raises(UserError, match="another process is preparing this store"):
            prepare(config, workers=1, say=quiet)
        return number_groups(*arguments)

    from data.build import number_groups

    monkeypatch.setattr("data.build.number_groups", groups_beside_another)
    assert prepare(config, workers=1, say=quiet).corpora["rows"].records == 60


def test_a_full_disk_leaves_nothing_that_looks_finished_and_one_message(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "calque", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system of its own")
    try:
        path = tmp_path / "recipe.yaml"
        config = configure(store=str(small / "store"))
        path.write_text(json.dumps(config.model_dump(mode="json")))
        assert main(["--recipe", str(path), "--workers", "1"]) == 2
        said = capsys.readouterr().err
        assert "No space left on device" in said and "what was done is kept" in said
        assert "Traceback" not in said and said.count("error:") == 1
        assert not (small / "store").exists()
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        resumed = files(prepare(config, workers=1, say=quiet).folder)
        TokenStore.open(small / "store").verify()
        elsewhere = prepare(configure(store=str(tmp_path / "store")), workers=1, say=quiet)
        assert files(elsewhere.folder) == resumed
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_corpora_that_lie_still_are_not_read_again_unless_asked(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    prepare(config, workers=1, say=quiet)
    monkeypatch.setattr("data.inputs.STILL", -1.0)
    prepare(config, workers=1, say=quiet)
    read: list[str] = []
    from data.inputs import sha256_of

    monkeypatch.setattr("data.inputs.sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    prepare(config, workers=1, say=quiet)
    assert not read
    path = tmp_path / "rows.jsonl"
    look = path.stat()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a", b"o", 1))
    os.utime(path, ns=(look.st_atime_ns, look.st_mtime_ns))  # the same size, the same time
    with pytest.raises(UserError, match="rows.jsonl: has changed"):
        prepare(config, workers=1, say=quiet)
    assert read == ["rows.jsonl"]
    path.write_bytes(content)
    prepare(config, workers=1, verify=True, say=quiet)
    assert {"rows.jsonl", "sentences.jsonl", "tokenizer.json"} <= set(read)
