"""The teacher's command: what is stored is what it said, nothing held out is read, a kill costs one block."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data import teach as command
from data.lessons import MANIFEST, PARTIAL, Options, teach
from data.preparation import prepare
from data.recipe import UserError
from data.settings.tasks import TasksConfig
from data.store import TokenStore
from data.teacher import Teacher
from data.teaching import Taught, Teaching
from tests.data.conftest import small_config
from tests.small_teacher import WIDTH, SmallTeacher, write_teacher

TRIPLETS = [
    {
        "lang": "de",
        "a": "Die Tür ist offen.",
        "p": "The door is open.",
        "n": ["The door is shut.", "A tree."],
    },
    {"lang": "en", "a": "A tree.", "p": "One tree.", "n": ["The door is open."]},
]


@dataclass
class World:
    """A store with triplets, and a folder that looks like a teacher's."""

    store: TokenStore
    model: Path
    folder: Path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, small_store: TokenStore) -> TokenStore:
    """Only read: what a teacher says lies beside it."""
    folder = tmp_path_factory.mktemp("taught")
    path = folder / "triplets.jsonl"
    path.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in TRIPLETS), encoding="utf-8")
    tokenizer = {"path": str(small_store.tokenizer_folder)}
    corpora = small_config(folder, tokenizer=tokenizer).model_dump()["corpora"]
    corpora["triplets"] = {
        "kind": "scored", "format": "jsonl", "path": str(path), "anchor": "a", "positive": "p", "negatives": "n",
        "language": {"field": "lang"}, "candidates_language": "en",
    }  # fmt: skip
    config = small_config(folder, tokenizer=tokenizer, corpora=corpora)
    return prepare(config, workers=1, say=lambda message: None)


@pytest.fixture
def world(tmp_path: Path, store: TokenStore) -> World:
    return World(store, write_teacher(tmp_path / "model"), tmp_path / "teacher")


def test_vectors_are_those_of_the_texts_and_zero_where_a_record_was_left_out(world: World) -> None:
    teacher = SmallTeacher()
    said = teach(world.store, Options(world.model, records=7), world.folder, teacher=teacher)
    assert f"vectors of width {WIDTH}" in said
    teaching = Teaching.open(world.folder, world.store)
    for name in ("rows", "sentences"):
        corpus, vectors = world.store.corpora[name], teaching.vectors(name)
        assert (
            vectors is not None and vectors.shape == (corpus.segments, WIDTH) and vectors.dtype == np.float16
        )
        seen = vectors.any(1)
        assert len(np.unique(corpus.segment_record[seen])) == 7 and not seen.all()
        segment = int(np.flatnonzero(seen)[-1])
        expected = teacher.embed([corpus.text(segment)])[0]
        assert np.abs(vectors[segment] - expected).max() < 1e-3
        assert np.array_equal(teaching.vector(name, segment), vectors[segment])
        assert teaching.vector(name, int(np.flatnonzero(~seen)[0])) is None
    assert teaching.vectors("held_out") is None and teaching.vectors("triplets") is None
    scores = teaching.scores("triplets")  # of all: a triplet without a score teaches nothing
    assert scores is not None and np.isnan(scores).sum() == len(TRIPLETS)


def test_nothing_held_out_is_read(world: World) -> None:
    teacher = SmallTeacher()
    teach(world.store, Options(world.model), world.folder, teacher=teacher)
    trained = {
        corpus.text(s)
        for corpus in world.store.corpora.values()
        if not corpus.held_out
        for s in range(corpus.segments)
    }
    assert set(teacher.texts) == trained
    held_out = world.store.corpora["held_out"]
    assert not {held_out.text(s) for s in range(held_out.segments)} & set(teacher.texts)


def test_scores_are_those_of_positive_and_negatives_against_the_anchor(world: World) -> None:
    teacher = SmallTeacher()
    teach(world.store, Options(world.model, corpora=("triplets",)), world.folder, teacher=teacher)
    scores = Teaching.open(world.folder, world.store).scores("triplets")
    assert scores is not None and np.isnan(scores[[0, 4]]).all()
    texts = [[t["a"], t["p"], *t["n"]] for t in TRIPLETS]
    expected = [teacher.embed([row[0]])[0] @ teacher.embed([text])[0] for row in texts for text in row[1:]]
    assert scores[~np.isnan(scores)] == pytest.approx(expected, abs=1e-6)
    corpus = world.store.corpora["triplets"]
    languages = [corpus.language(s) for s in range(corpus.segments)]
    assert languages == ["de", "en", "en", "en", "en", "en", "en"]
    assert np.isnan(corpus.segment_scores).all()


def test_a_run_takes_the_teachers_scores_and_refuses_a_teacher_that_gave_none(world: World) -> None:
    named = TasksConfig.model_validate({"adaptive_margin": {"teacher": str(world.folder)}})
    teach(world.store, Options(world.model, corpora=("rows",)), world.folder, teacher=SmallTeacher())
    with pytest.raises(UserError, match="has no scores of triplets; score them with"):
        Taught.open(named, world.store)
    options = Options(world.model, corpora=("triplets",))
    teach(world.store, options, world.folder, rebuild=True, teacher=SmallTeacher())
    taught = Taught.open(named, world.store)
    assert (
        taught.scores is not None and taught.width == 0 and list(taught.fingerprints) == ["adaptive_margin"]
    )


def test_what_was_done_when_it_was_ended_is_not_done_again(world: World) -> None:
    options = Options(world.model, corpora=("rows", "sentences"))
    whole = SmallTeacher()
    teach(world.store, options, world.folder.with_name("whole"), teacher=whole)
    first = SmallTeacher(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        teach(world.store, options, world.folder, teacher=first)
    assert (world.folder / PARTIAL).exists() and not (world.folder / MANIFEST).exists()
    with pytest.raises(UserError, match="holds nothing of a teacher"):
        Teaching.open(world.folder, world.store)
    second = SmallTeacher()
    teach(world.store, options, world.folder, teacher=second)
    assert first.texts + second.texts == whole.texts and second.texts
    manifests = [
        json.loads((f / MANIFEST).read_text()) for f in (world.folder, world.folder.with_name("whole"))
    ]
    assert manifests[0] == manifests[1]
    third = SmallTeacher()
    assert "already taught" in teach(world.store, options, world.folder, teacher=third) and not third.texts


def test_other_options_start_anew_what_is_unfinished_and_are_refused_where_it_is_complete(
    world: World,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        teach(world.store, Options(world.model, corpora=("rows",)), world.folder, teacher=SmallTeacher(1))
    other = Options(world.model, corpora=("rows",), records=20)
    teach(world.store, other, world.folder, teacher=SmallTeacher())
    with pytest.raises(UserError, match="another teacher, or with other options.*--rebuild"):
        teach(world.store, other._replace(records=21), world.folder, teacher=SmallTeacher())
    teach(world.store, other._replace(records=21), world.folder, rebuild=True, teacher=SmallTeacher())
    assert Teaching.open(world.folder, world.store).manifest["records"] == 21


def test_a_changed_store_another_teacher_and_damage_are_said(world: World, small_store: TokenStore) -> None:
    teach(world.store, Options(world.model, corpora=("rows",)), world.folder, teacher=SmallTeacher())
    with pytest.raises(UserError, match="the teacher read another token store"):
        Teaching.open(world.folder, small_store)
    config = world.model / "config.json"
    sound = config.read_text()
    config.write_text(sound + " ")
    with pytest.raises(UserError, match="is not the one that was asked"):
        Teaching.open(world.folder, world.store)
    Teaching.open(world.folder, world.store, known=True)
    config.write_text(sound)
    (world.model / ".lock").touch()
    Teaching.open(world.folder, world.store)
    vectors = world.folder / "rows.vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    with pytest.raises(UserError, match="rows.vectors.npy: is missing or not of the size"):
        Teaching.open(world.folder, world.store)
    (world.folder / MANIFEST).write_text(
        (world.folder / MANIFEST).read_text().replace('"records"', '"record"')
    )
    with pytest.raises(UserError, match="was changed after it was written"):
        Teaching.open(world.folder, world.store)
    shutil.rmtree(world.model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpora": ("held_out",)}, "held_out: is held out, and no teacher reads it"),
        ({"corpora": ("nowhere",)}, "nowhere: the store has rows, sentences"),
        ({"records": 0}, "must be at least 1"),
        ({"teacher": Path("nowhere")}, "nowhere: there is no such folder"),
        ({"teacher": Path("tests")}, "tests: holds no model"),
    ],
)
def test_what_can_not_be_taught_is_refused(world: World, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        teach(world.store, Options(world.model)._replace(**options), world.folder, teacher=SmallTeacher())


def test_a_cross_encoder_scores_triplets_and_nothing_else(world: World) -> None:
    (world.model / "config.json").write_text('{"architectures": ["XLMRobertaForSequenceClassification"]}')
    with pytest.raises(UserError, match="this corpus is parallel; mine triplets first"):
        teach(world.store, Options(world.model, corpora=("rows",)), world.folder, teacher=SmallTeacher())
    teach(world.store, Options(world.model), world.folder, teacher=SmallTeacher())
    teaching = Teaching.open(world.folder, world.store)
    assert list(teaching.manifest["files"]) == ["triplets.scores.npy"] and teaching.width == 0


def test_a_folder_that_holds_something_else_is_left_alone(world: World) -> None:
    world.folder.mkdir()
    (world.folder / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else; name another one with --out"):
        teach(world.store, Options(world.model), world.folder, teacher=SmallTeacher())
    assert (world.folder / "letter.txt").exists()


def test_the_command_says_errors_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--recipe", "recipes/nothing.yaml", "--teacher", "x"]) == 2
    assert "no such recipe" in capsys.readouterr().err


@pytest.fixture(scope="module")
def real_models(tmp_path_factory: pytest.TempPathFactory, small_store: TokenStore) -> Path:
    """A tiny encoder and a tiny cross-encoder with the store's tokenizer, as Hugging Face folders."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    shape = transformers.BertConfig(
        vocab_size=3000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, num_labels=1,
    )  # fmt: skip
    transformers.BertModel(shape).save_pretrained(folder / "encoder")
    transformers.BertForSequenceClassification(shape).save_pretrained(folder / "cross")
    shape.num_labels = 3
    transformers.BertForSequenceClassification(shape).save_pretrained(folder / "classes")
    for name in ("encoder", "cross", "classes"):
        for file in small_store.tokenizer_folder.iterdir():
            shutil.copy(file, folder / name)
    return folder


def test_a_real_encoder_gives_unit_vectors_and_a_prefix_changes_them(real_models: Path) -> None:
    texts = ["The door is open.", "Die Tür ist offen und bleibt es.", ""]
    vectors = Teacher(real_models / "encoder").embed(texts)
    assert vectors.shape == (3, 16) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    prefixed = Teacher(real_models / "encoder", prefix="query: ")
    assert np.abs(prefixed.embed(texts) - vectors).max() > 1e-3
    assert Teacher(real_models / "encoder").embed(["query: " + t for t in texts]) == pytest.approx(
        prefixed.embed(texts), abs=1e-5
    )
    scores = Teacher(real_models / "encoder").score([texts[0]] * 2, texts[:2])
    assert scores == pytest.approx([1.0, vectors[0] @ vectors[1]], abs=1e-5)


@pytest.mark.skipif(
    not os.environ.get("CALQUE_TEST_MODEL"),
    reason="set CALQUE_TEST_MODEL to the folder of a multilingual-e5 model to run this",
)
def test_a_pretrained_teacher_finds_the_translation() -> None:
    teacher = Teacher(Path(os.environ["CALQUE_TEST_MODEL"]), prefix="query: ")
    english = teacher.embed(
        [
            "The backup could not be restored because the file is damaged.",
            "Enter the name of the new user.",
            "The connection to the server was lost.",
        ]
    )
    others = teacher.embed(
        [
            "Die Sicherung konnte nicht wiederhergestellt werden, weil die Datei beschädigt ist.",
            "Saisissez le nom du nouvel utilisateur.",
            "Соединение с сервером потеряно.",
        ]
    )
    scores = english @ others.T
    assert scores.argmax(1).tolist() == scores.argmax(0).tolist() == [0, 1, 2]
    assert (scores.diagonal() > 0.8).all()


def test_a_real_cross_encoder_gives_logits_and_a_classifier_is_refused(real_models: Path) -> None:
    import torch
    import transformers

    cross = Teacher(real_models / "cross")
    assert cross.cross_encoder
    scores = cross.score(["The door.", "A tree."], ["Die Tür.", "Ein Baum."])
    model = transformers.BertForSequenceClassification.from_pretrained(real_models / "cross").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_models / "cross")
    with torch.no_grad():
        encoded = tokenizer(
            ["The door.", "A tree."], ["Die Tür.", "Ein Baum."], padding=True, return_tensors="pt"
        )
        expected = model(**encoded).logits[:, 0].numpy()
    assert scores == pytest.approx(expected, abs=1e-5)
    broken = real_models / "encoder" / "model.safetensors"
    sound = broken.read_bytes()
    broken.write_bytes(sound[:1000])
    with pytest.raises(UserError, match="encoder: can not be opened: "):
        Teacher(real_models / "encoder")
    broken.write_bytes(sound)
    with pytest.raises(UserError, match="a classifier of 3 classes gives no score"):
        Teacher(real_models / "classes")
