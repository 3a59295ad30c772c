"""Nothing in a checkpoint or a model folder is executed: malicious files, and an audit of what loading does."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save

from data.recipe import UserError
from data.store import digest_of_values, sha256_of
from model.huggingface import ModelError, load_weights, read_config
from tests.training.runs import WITHOUT_EVALUATION, call, train
from training.checkpoint import DamagedCheckpoint, find, verify
from training.export import main as export_main

pytestmark = pytest.mark.ranks

FEW = ("steps=1", "optimizer.warmup_steps=0", WITHOUT_EVALUATION)
SHARD = "rank-00000.safetensors"


class Payload:
    """What an attacker would plant: opening it as a pickle makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def saved(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of one step; to be copied with its run."""
    runs = tmp_path_factory.mktemp("saved")
    train(small_recipe, runs, *FEW, stage=3)
    return runs / "small"


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "runs" / "small"))


def seal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda manifest: None) -> None:
    """Make the manifest agree with what lies in the folder, as an attacker who may write there would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        file = folder / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    del manifest["digest"]
    change(manifest)
    path.write_text(json.dumps({**manifest, "digest": digest_of_values(manifest)}))


def pickled(folder: Path, trace: Path) -> None:
    (folder / SHARD).write_bytes(pickle.dumps(Payload(trace)))


def torch_zip(folder: Path, trace: Path) -> None:
    torch.save({"weight": Payload(trace)}, folder / SHARD)


def torch_legacy(folder: Path, trace: Path) -> None:
    torch.save({"weight": Payload(trace)}, folder / SHARD, _use_new_zipfile_serialization=False)


def pickle_behind_a_header(folder: Path, trace: Path) -> None:
    """A safetensors file whose one tensor is a pickle."""
    content = pickle.dumps(Payload(trace))
    header = json.dumps(
        {"data.pkl": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}
    )
    (folder / SHARD).write_bytes(struct.pack("<Q", len(header)) + header.encode() + content)


def pickle_as_state(folder: Path, trace: Path) -> None:
    (folder / "run.json").write_bytes(pickle.dumps(Payload(trace)))


def other_types(folder: Path, trace: Path) -> None:
    """A header that calls for what the library does not have."""
    content = (folder / SHARD).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].replace(b'"F32"', b'"PKL"')
    (folder / SHARD).write_bytes(content[:8] + header + content[8 + length :])


PLANTED = {
    each.__name__: each
    for each in (pickled, torch_zip, torch_legacy, pickle_behind_a_header, pickle_as_state, other_types)
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_program_is_refused_by_name_and_not_executed(run: Path, tmp_path: Path, what: str) -> None:
    folder = run / "checkpoints" / "step-00000001"
    trace = tmp_path / "executed"
    PLANTED[what](folder, trace)
    seal(folder)
    name = "run.json" if what == "pickle_as_state" else SHARD
    (done,) = call(export_main, run, tmp_path / "out")
    assert name in done.error
    assert not trace.exists() and not (tmp_path / "out").exists()
    if what in ("torch_zip", "torch_legacy"):
        torch.load(shutil.copy(folder / SHARD, tmp_path / "copy.pt"), weights_only=False)
        assert trace.exists()  # the payload would have worked


def test_a_resumed_run_refuses_them_too(run: Path, small_recipe: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "step-00000001"
    torch_zip(folder, tmp_path / "executed")
    seal(folder)
    with pytest.raises(AssertionError, match=f"none can be used(?s:.)*{SHARD}"):
        train(small_recipe, run.parent, *FEW, ranks=2, stage=1)
    assert not (tmp_path / "executed").exists()


def test_files_beside_the_checkpoint_s_own_are_never_opened(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "step-00000001"
    trace = tmp_path / "executed"
    names = ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt", "pytorch_model.bin")
    for name in names:
        torch.save(Payload(trace), folder / name)
    save({"weight": torch.zeros(1)}, storage_writer=FileSystemWriter(folder), no_dist=True)
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(trace)))
    opened = audited(run)["open"]
    assert {Path(path).name for path in opened if path.startswith(str(folder))} == {
        "manifest.json", "run.json", SHARD,
    }  # fmt: skip
    assert not trace.exists()


TAMPERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a path that leads out": lambda m: m["files"].update({"../../../etc/passwd": m["files"].pop("run.json")}),
    "an absolute path": lambda m: m["files"].update({"/etc/passwd": m["files"].pop("run.json")}),
    "another file": lambda m: m["files"].update({"payload.pt": m["files"].pop(SHARD)}),
    "no files": lambda m: m.update(files={}),
    "files that are a list": lambda m: m.update(files=["run.json"]),
    "sizes that are texts": lambda m: m["files"]["run.json"].update(bytes="many"),
    "more ranks": lambda m: m.update(ranks=2),
    "another step": lambda m: m.update(step=7),
    "another format": lambda m: m.update(format=1),
    "a shape too large": lambda m: m["parameters"]["head.bias"].update(shape=[2**60]),
    "another shape": lambda m: m["parameters"]["head.bias"].update(shape=[3]),
    "a split of nothing": lambda m: m["parameters"]["head.bias"].update(split=[5, 1, 0]),
    "a parameter more": lambda m: m["parameters"].update({"x": {"shape": [2], "split": None}}),
    "a parameter less": lambda m: m["parameters"].pop("head.bias"),
    "counts that are programs": lambda m: m["engine"].update(updates="__import__('os')"),
    "no counts": lambda m: m.pop("engine"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_manifest_that_lies_is_refused_although_its_digest_is_right(run: Path, what: str) -> None:
    folder = run / "checkpoints" / "step-00000001"
    seal(folder)
    verify(folder)
    seal(folder, TAMPERED[what])
    with pytest.raises(DamagedCheckpoint, match="step-00000001"):
        verify(folder)
    with pytest.raises(UserError, match="none can be used"):
        find(run)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{" * 50_000, b'{"digest": 1}', b"\xff\xfe", b'{"\\ud800": 1}']
)
def test_a_manifest_that_is_none_is_refused(run: Path, content: bytes) -> None:
    (run / "checkpoints" / "step-00000001" / "manifest.json").write_bytes(content)
    with pytest.raises(
        UserError, match="manifest.json: (not a readable manifest|differs from what was saved)"
    ):
        find(run)


@pytest.mark.ranks
@pytest.mark.parametrize("content", [b"[]", b'{"step": "1"}', b'{"step": true}'])
def test_a_state_that_is_none_is_refused(run: Path, tmp_path: Path, content: bytes) -> None:
    folder = run / "checkpoints" / "step-00000001"
    (folder / "run.json").write_bytes(content)
    seal(folder)
    with pytest.raises(DamagedCheckpoint, match="run.json: does not hold the state of a run"):
        find(run).run_state()


# Reports what a process does while it loads a checkpoint, or as a control a pickle: events with their arguments.
AUDIT = """
import json, sys
from pathlib import Path
import torch, training.export
from training import checkpoint
seen = {}
watched = ("pickle.find_class", "exec", "compile", "os.system", "os.exec", "os.mkdir", "subprocess.Popen", "import",
           "ctypes.dlopen", "marshal.loads", "open", "os.posix_spawn", "socket.connect")
sys.addaudithook(lambda event, arguments: event in watched and seen.setdefault(event, []).append(str(arguments[0])))
path = Path(sys.argv[1])
if path.suffix == ".pt":
    torch.load(path, weights_only=False)
else:
    found = checkpoint.find(path)
    found.run_state()
    total = sum(float(tensor.double().sum()) for _, tensor in found.weights())
listed = dict(seen)
print(json.dumps(listed))
"""


def audited(path: Path) -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-c", AUDIT, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    events: dict[str, list[str]] = json.loads(done.stdout)
    return events


def test_loading_a_checkpoint_imports_compiles_unpickles_and_starts_nothing(run: Path) -> None:
    assert audited(run).keys() == {"open"}


def test_the_audit_sees_what_unpickling_does(tmp_path: Path) -> None:
    torch.save({"x": Payload(tmp_path / "executed")}, tmp_path / "file.pt")
    assert {"pickle.find_class", "os.mkdir", "open"} <= audited(tmp_path / "file.pt").keys()


def test_a_model_folder_with_a_pickle_is_refused_and_not_opened(tmp_path: Path) -> None:
    config = {"model_type": "xlm-roberta", "vocab_size": 10, "num_hidden_layers": 1, "hidden_size": 8,
              "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 34}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"x": Payload(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can run code when it is opened and is not read"):
        load_weights(tmp_path, read_config(tmp_path))
    assert not (tmp_path / "executed").exists()
