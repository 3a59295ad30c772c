"""An export holds the master weights of the checkpoint, or is refused and leaves what was there as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data.preparation import prepare
from data.recipe import UserError, parse_recipe, read_recipe
from model.huggingface import load_weights, read_config
from tests.small_run import write_small_recipe
from tests.training.runs import WITH_BTMLM, WITHOUT_EVALUATION, call, digests, final_weights, train
from training import exported as export_module
from training.config import Recipe
from training.export import main
from training.exported import export
from training.saved_run import load_run

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def run(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps in bfloat16 on two ranks, weights in shards."""
    runs = tmp_path_factory.mktemp("exported")
    train(small_recipe, runs, "steps=2", "precision=bf16", WITHOUT_EVALUATION, *WITH_BTMLM, ranks=2, stage=3)
    return runs / "small"


def test_the_float32_master_weights_leave_not_the_rounded_ones(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    differences = export(load_run(run), out)
    assert all(value <= 1e-4 for value in differences.values()) and differences["token_ids"] == 0
    masters = final_weights(run)
    written = load_weights(out, read_config(out))
    languages = masters.pop("encoder.embedding.language.weight")
    assert languages.shape == (22, 32) and languages.abs().max() > 1e-4  # learned, and left out
    assert set(written) == {name for name in masters if not name.startswith("temperature")}
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, masters[name], rtol=0, atol=0)
    table = written["encoder.embedding.word.weight"]
    assert not torch.equal(table, table.bfloat16().float())
    assert all(tensor.dtype == torch.float32 for tensor in load_file(out / "model.safetensors").values())


def test_a_table_of_more_rows_than_ids_is_trained_and_leaves_whole(
    small_recipe: Path, tmp_path: Path
) -> None:
    train(
        small_recipe, tmp_path, "steps=2", "model.vocabulary_size=2048", WITHOUT_EVALUATION, ranks=2, stage=3
    )
    (done,) = call(main, tmp_path / "small", tmp_path / "out")  # its parity is checked there
    assert done.status == 0, done
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 2048
    table = load_weights(tmp_path / "out", read_config(tmp_path / "out"))["encoder.embedding.word.weight"]
    assert table.shape == (2048, 32) and len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 2000


def spoilt(folder: Path) -> Callable[[], None]:
    """A probe under which what is written is not what was trained."""

    def probe() -> None:
        original = export_module.write_folder

        def write(state: dict[str, torch.Tensor], *arguments: object, **options: object) -> None:
            name = "encoder.embedding.word.weight"
            original(
                {**state, name: state[name] + 0.01 * torch.randn_like(state[name])}, *arguments, **options
            )

        export_module.write_folder = write

    return probe


def test_an_export_that_differs_from_the_training_model_fails_and_leaves_the_earlier_one(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (done,) = call(main, run, out)
    assert done.status == 0 and "largest differences" in done.out
    before = digests(out)
    (done,) = call(main, run, out, probe=spoilt(out))
    assert "the export differs from the training model" in done.error and "hidden" in done.error
    assert digests(out) == before
    report = json.loads((tmp_path / ".out.writing" / "parity.json").read_text())
    assert report["largest_difference"]["logits"] > report["tolerance"]
    (done,) = call(main, run, out)  # what was left is no obstacle
    assert done.status == 0 and digests(out) == before and not (tmp_path / ".out.writing").exists()


def test_a_folder_that_is_no_export_is_not_touched(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    before = digests(tmp_path)
    for name in ("mine", "file"):
        (done,) = call(main, run, tmp_path / name)
        assert "is not an earlier export" in done.error
    assert digests(tmp_path) == before
    (tmp_path / "empty").mkdir()
    (done,) = call(main, run, tmp_path / "empty")
    assert done.status == 0


def test_a_run_whose_store_is_another_now_is_refused(tmp_path: Path) -> None:
    recipe = write_small_recipe(tmp_path)
    config = parse_recipe(read_recipe(recipe), Recipe)
    prepare(config, workers=1, say=lambda message: None)
    train(recipe, tmp_path / "runs", "steps=1", "optimizer.warmup_steps=0", WITHOUT_EVALUATION)
    corpus = tmp_path / "sentences.jsonl"
    corpus.write_bytes(corpus.read_bytes().split(b"\n", 1)[1])
    prepare(config, workers=1, rebuild=True, say=lambda message: None)
    (done,) = call(main, tmp_path / "runs" / "small", tmp_path / "out")
    assert "was trained on another store" in done.error and not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(UserError, match="data.prepare"):
        load_run(tmp_path / "runs" / "small")


def test_a_checkpoint_can_be_named_from_inside_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "checkpoints")
    assert load_run(Path("step-00000002")).step == 2
    monkeypatch.chdir(run)
    assert load_run(Path()).step == 2
