"""What a person gets wrong is answered by one message with the remedy and exit status 2, and harms nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import pretrain
from data.prepare import main as prepare_main
from data.recipe import parse_recipe, read_recipe
from model.config import EncoderConfig
from model.huggingface import write_folder
from model.pretraining import PretrainingModel
from tests.small_run import write_small_recipe
from tests.training.runs import Done, call, digests
from training.config import Recipe
from training.evaluate import main as evaluate_main
from training.export import main as export_main
from training.gains import main as gains_main

# ---------------------------------------------------------------- what is seen before numpy and torch are imported


def written(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def changed(recipe: Path, folder: Path, name: str, **changes: Any) -> str:
    """The recipe with some of its keys replaced."""
    return written(folder, name, yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **changes}))


Case = tuple[
    Callable[[Path, Path], list[str]], list[str]
]  # (recipe, folder) -> arguments; what the message says

EARLY: dict[str, Case] = {
    "misspelt recipe": (
        lambda r, f: ["--recipe", "recipes/dmeo.yaml"],
        ["no such recipe", "did you mean recipes/demo.yaml?"],
    ),
    "not YAML": (lambda r, f: ["--recipe", written(f, "torn.yaml", "name: [a")], ["torn.yaml:1", "not valid YAML"]),
    "unknown key": (
        lambda r, f: ["--recipe", changed(r, f, "key.yaml", stpes=6)],
        ["stpes: unknown key; did you mean 'steps'?"],
    ),
    "unknown key below": (
        lambda r, f: ["--recipe", str(r), "--set", "optimizer.learning_rat=1"],
        ["--set: optimizer.learning_rat: unknown key; did you mean 'learning_rate'?"],
    ),
    "several at once": (
        lambda r, f: [
            "--recipe", changed(r, f, "three.yaml", steps="many", precision="bf32"), "--set", "batch.size=3",
        ],
        ["errors in the recipe", "steps = 'many'", "did you mean 'fp32'?", "batch.size: unknown key"],
    ),
    "--set without a value": (
        lambda r, f: ["--recipe", str(r), "--set", "steps"],
        ["--set steps: write it as --set section.key=value"],
    ),
    "--set below a number": (lambda r, f: ["--recipe", str(r), "--set", "steps.more=1"], ["steps holds 6"]),
    "row too small": (
        lambda r, f: ["--recipe", str(r), "--set", "batch.row_tokens=64"],
        ["batch.row_tokens 64 must hold 2 documents of maximum_tokens 64: at least 128"],
    ),
    "back-translation that is not told its language": (
        lambda r, f: ["--recipe", str(r), "--set", "tasks.btmlm={}"],
        ["need model.language_embeddings: true"],
    ),
    "a temperature without a draw": (
        lambda r, f: ["--recipe", str(r), "--set", "tasks.btmlm={decode: {temperature: 0.5}}"],
        ["tasks.btmlm.decode", "set top_k to 2 or more"],
    ),
    "microbatch that does not divide": (
        lambda r, f: ["--recipe", str(r), "--set", "batch.microbatch_tokens=1536"],
        ["step_tokens 4096 is not a multiple of microbatch_tokens 1536"],
    ),
    "unknown corpus in the evaluation": (
        lambda r, f: ["--recipe", str(r), "--set", "evaluation.masked=[tset]"],
        ["evaluation.masked names corpus 'tset'; corpora: rows, sentences, test"],
    ),
    "monolingual corpus in the evaluation": (
        lambda r, f: ["--recipe", str(r), "--set", "evaluation.masked=[sentences]"],
        ["needs parallel corpora; 'sentences' is monolingual"],
    ),
    "positions too few": (
        lambda r, f: ["--recipe", str(r), "--set", "model.positions=60"],
        ["maximum_tokens 64 needs model.positions of at least 66"],
    ),
    "shape and start_from": (
        lambda r, f: ["--recipe", str(r), "--set", "model.start_from=models/x"],
        ["the folder of start_from decides the shape; leave out layers, width, heads"],
    ),
    "seed of the evaluation": (
        lambda r, f: ["--recipe", str(r), "--set", "evaluation.seed=-1"],
        ["evaluation.seed = -1", "greater than or equal to 0"],
    ),
    "no DeepSpeed file": (
        lambda r, f: ["--recipe", str(r), "--deepspeed_config", "ds_configs/zero5.json"],
        ["no such DeepSpeed file", "ds_configs/zero3.json"],
    ),
    "DeepSpeed file that is not JSON": (
        lambda r, f: ["--recipe", str(r), "--deepspeed_config", written(f, "torn.json", "{")],
        ["not a readable JSON file"],
    ),
    "wrong types in the DeepSpeed file": (
        lambda r, f: [
            "--recipe", str(r), "--deepspeed_config",
            written(f, "types.json", {"zero_optimization": {"stage": 3, "overlap_comm": 2}, "steps_per_print": "x"}),
        ],
        ["2 error(s)", "overlap_comm: is 2, should be true or false", 'steps_per_print: is "x", should be a whole'],
    ),
    "misspelt DeepSpeed keys": (
        lambda r, f: [
            "--recipe", str(r), "--deepspeed_config",
            written(f, "keys.json", {"zero_optimisation": {}, "gradient_cliping": 1, "bf16": {"enable": True}}),
        ],
        ["3 error(s)", *(f"did you mean {k}?" for k in ("zero_optimization", "gradient_clipping", "bf16.enabled"))],
    ),
    "DeepSpeed stage": (
        lambda r, f: [
            "--recipe", str(r), "--deepspeed_config", written(f, "stage.json", {"zero_optimization": {"stage": 4}}),
        ],
        ["zero_optimization.stage is 4: it is 0, 1, 2 or 3"],
    ),
    "optimizer in the DeepSpeed file": (
        lambda r, f: [
            "--recipe", str(r), "--deepspeed_config", written(f, "optimizer.json", {"optimizer": {"type": "Adam"}}),
        ],
        ["optimizer: belongs to the recipe"],
    ),
    "a knob in both files": (
        lambda r, f: [
            "--recipe", str(r), "--deepspeed_config",
            written(f, "both.json", {"gradient_clipping": 5, "gradient_accumulation_steps": 4,
                                     "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}),
        ],
        ["two files disagree", "gradient_clipping is 5 in", "both.json and 1.0 by", "bf16.enabled is True"],
    ),
    "a type of gradients that the stage can not have": (
        lambda r, f: [
            "--recipe", str(r), "--set", "precision=bf16",
            "--deepspeed_config", written(f, "types1.json", {"data_types": {"grad_accum_dtype": "fp32"}}),
        ],
        ["data_types.grad_accum_dtype fp32 with precision bf16", "take another stage"],
    ),
    "dropout with accumulation": (
        lambda r, f: [
            "--recipe", str(r), "--set", "model.dropout=0.1",
        ],
        ["model.dropout 0.1 with 4 microbatches a rank", "set it to 0"],
    ),
}  # fmt: skip

HEAVY = ("numpy", "pyarrow", "tokenizers", "torch", "deepspeed", "transformers")
DRIVER = """
import contextlib, io, json, os, sys
import pretrain
results, clean = [], dict(os.environ)
cases, heavy = json.loads(sys.argv[1])
for arguments in cases:
    sys.argv = ["pretrain.py", *arguments]
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            status = pretrain.main()
        except SystemExit as leaving:
            status = leaving.code
    results.append([status, out.getvalue(), err.getvalue()])
    os.environ.clear()
    os.environ.update(clean)
print(json.dumps([results, [name for name in heavy if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def early(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What pretrain.py answers to every early case, and to --help, in one process that imports nothing heavy."""
    folder = tmp_path_factory.mktemp("early")
    cases = [["--help"], *(make(small_recipe, folder) for make, _ in EARLY.values())]
    runs = ["--runs", str(folder / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([[[*case, *runs] for case in cases], HEAVY])],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results, heavy = json.loads(done.stdout)
    assert heavy == []
    assert not (folder / "runs").exists()
    return {name: Done(*result) for name, result in zip(["--help", *EARLY], results, strict=True)}


def test_help_is_shown_without_numpy_and_torch(early: dict[str, Done]) -> None:
    assert early["--help"].status == 0 and "--deepspeed_config" in early["--help"].out


@pytest.mark.parametrize("name", EARLY)
def test_what_files_and_command_line_say_is_checked_before_numpy_and_torch_are_imported(
    early: dict[str, Done], name: str
) -> None:
    for words in EARLY[name][1]:
        assert words in early[name].error
    assert early[name].err.startswith("error: ")


def test_the_real_command_ends_with_status_2_and_one_message() -> None:
    done = subprocess.run(
        [sys.executable, "pretrain.py", "--recipe", "recipes/dmeo.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: recipes/dmeo.yaml: no such recipe") and done.stderr.count("\n") == 1


# ----------------------------------------------------------------------------------- what the data or models say


def pretrained(recipe: Path, runs: Path, *settings: str, **options: Any) -> Done:
    (done,) = call(
        pretrain.main, "--recipe", recipe, "--runs", runs, *(f"--set={each}" for each in settings), **options
    )
    return done


def fake_apex(folder: Path) -> Callable[[], None]:
    """PyPI's apex: a package of that name without NVIDIA's optimizers."""
    (folder / "apex").mkdir()
    (folder / "apex" / "__init__.py").write_text("")
    return lambda: sys.path.insert(0, str(folder))


@pytest.mark.ranks
def test_the_apex_of_pypi_is_recognised_and_refused(small_recipe: Path, tmp_path: Path) -> None:
    done = pretrained(small_recipe, tmp_path / "runs", probe=fake_apex(tmp_path))
    assert "the installed package 'apex' is not NVIDIA's" in done.error and "pip uninstall apex" in done.error
    wanted = pretrained(small_recipe, tmp_path / "runs", "optimizer.implementation=apex")
    assert "apex is not installed" in wanted.error and "built from source" in wanted.error


@pytest.mark.ranks
def test_a_missing_corpus_and_a_folder_without_tokenizer(tmp_path: Path) -> None:
    recipe = write_small_recipe(tmp_path)
    (tmp_path / "rows.jsonl").rename(tmp_path / "moved.jsonl")
    done = pretrained(recipe, tmp_path / "runs")
    assert "corpora.rows" in done.error and "rows.jsonl" in done.error
    (tmp_path / "moved.jsonl").rename(tmp_path / "rows.jsonl")
    done = pretrained(recipe, tmp_path / "runs", f"tokenizer={{path: {tmp_path / 'nowhere'}}}")
    assert "tokenizer.path" in done.error and "nowhere" in done.error
    assert not (tmp_path / "store").exists() and not (tmp_path / "runs").exists()


@pytest.mark.ranks
def test_a_store_of_another_recipe_is_refused_and_left_as_it_is(small_recipe: Path, tmp_path: Path) -> None:
    store = Path(parse_recipe(read_recipe(small_recipe), Recipe).store)
    before = digests(store)
    for extra in ([], ["--dry-run"]):
        (done,) = call(
            pretrain.main, "--recipe", small_recipe, "--runs", tmp_path, "--set=maximum_tokens=32", *extra
        )
        assert "maximum_tokens: was 64, is 32" in done.error and "--rebuild" in done.error
    assert digests(store) == before and not list(tmp_path.iterdir())


@pytest.mark.ranks
def test_a_dry_run_before_the_store_is_prepared_says_how_and_makes_nothing(tmp_path: Path) -> None:
    recipe = write_small_recipe(tmp_path)
    before = digests(tmp_path)
    (done,) = call(pretrain.main, "--recipe", recipe, "--runs", tmp_path / "runs", "--dry-run")
    assert done.status == 0 and f"python -m data.prepare --recipe {recipe}" in done.out
    assert "parameters" in done.out and digests(tmp_path) == before


@pytest.fixture(scope="module")
def other_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a smaller vocabulary than the small recipe's."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tokenizer").mkdir()
    written(folder, "tokenizer/tokenizer.json", {"model": {"vocab": [["x", 0.0]] * 1500}})
    written(folder, "tokenizer/tokenizer_config.json", {})
    config = EncoderConfig(vocabulary_size=1500, layers=1, width=32, heads=2, feed_forward=64, positions=66)
    write_folder(
        PretrainingModel(config).state_dict(), config, folder / "other",
        tokenizer_folder=folder / "tokenizer", maximum_tokens=64,
    )  # fmt: skip
    return folder / "other"


@pytest.mark.ranks
def test_a_model_to_start_from_with_another_vocabulary_or_none(
    small_recipe: Path, tmp_path: Path, other_vocabulary: Path
) -> None:
    done = pretrained(small_recipe, tmp_path / "runs", f"model={{start_from: {other_vocabulary}}}")
    assert (
        "has 1500 token vectors" in done.error and "2000 ids" in done.error and "tokenizer.path" in done.error
    )
    done = pretrained(small_recipe, tmp_path / "runs", f"model={{start_from: {tmp_path / 'none'}}}")
    assert "config.json does not exist" in done.error


@pytest.mark.ranks
def test_a_table_with_fewer_rows_than_the_tokenizer_has_ids(small_recipe: Path, tmp_path: Path) -> None:
    done = pretrained(small_recipe, tmp_path / "runs", "model.vocabulary_size=1999")
    assert "model.vocabulary_size 1999: the tokenizer of" in done.error and "2000 or more" in done.error


@pytest.mark.ranks
def test_evaluating_something_that_is_no_model(
    small_recipe: Path, tmp_path: Path, other_vocabulary: Path
) -> None:
    (done,) = call(evaluate_main, tmp_path / "nothing", "--recipe", small_recipe)
    assert "there is no such folder" in done.error
    (done,) = call(evaluate_main, tmp_path, "--recipe", small_recipe)
    assert "neither a run folder with checkpoints nor a checkpoint" in done.error
    (done,) = call(evaluate_main, other_vocabulary, "--recipe", small_recipe)
    assert "has another tokenizer than the store" in done.error and "--recipe" in done.error
    (done,) = call(evaluate_main, other_vocabulary, "--recipe", "recipes/dmeo.yaml")
    assert "did you mean recipes/demo.yaml" in done.error


@pytest.mark.ranks
@pytest.mark.parametrize("main", [export_main, gains_main])
def test_exporting_or_showing_something_that_is_no_run(main: Callable[[], int], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (done,) = call(main, tmp_path / "empty", tmp_path / "out")
    assert str(tmp_path / "empty") in done.error and not (tmp_path / "out").exists()


def test_preparing_reports_bad_input_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_small_recipe(tmp_path)
    assert prepare_main(["--recipe", str(recipe), "--set", "corpora.rows.kind=paralel"]) == 2
    assert "did you mean 'parallel'?" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.ranks
def test_ranks_without_a_meeting_place_are_refused(small_recipe: Path, tmp_path: Path) -> None:
    def half_a_launcher() -> None:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]

    done = pretrained(small_recipe, tmp_path / "runs", probe=half_a_launcher)
    assert "RANK is set in the environment and MASTER_ADDR, MASTER_PORT not" in done.error
