"""Mining: the nearest of another group by plain search, margins as named, and a corpus that is read back whole."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data import nearest as search
from data.config import CorpusConfig
from data.lessons import Options as TeachOptions
from data.lessons import teach
from data.mine import main
from data.mining import mine
from data.mining_options import Options
from data.nearest import nearest, texts_of
from data.recipe import UserError
from data.records import ScoredTriplet
from data.sources import read_corpus
from data.sources.checks import check_corpus
from data.store import TokenStore
from data.teaching import Teaching
from tests.small_teacher import SmallTeacher, write_margin_recipe, write_teacher


@dataclass
class World:
    """A store whose rows a teacher has read, but for some of them."""

    store: TokenStore
    teaching: Teaching


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, small_store: TokenStore) -> World:
    folder = tmp_path_factory.mktemp("mine")
    options = TeachOptions(write_teacher(folder / "model"), corpora=("rows",), records=40)
    teach(small_store, options, folder / "teacher", teacher=SmallTeacher())
    return World(small_store, Teaching.open(folder / "teacher", small_store))


def mined(world: World, out: Path, **options: object) -> list[dict]:
    mine(world.store, world.teaching, Options(**options), out)  # type: ignore[arg-type]
    opened = gzip.open(out) if out.suffix == ".gz" else out.open("rb")
    with opened as file:
        return [json.loads(line) for line in file]


def plainly(world: World, anchor: str, language: str) -> list[tuple[str, float]]:
    """Texts of a language that the teacher has read, of other rows than the anchor's, nearest first."""
    corpus, vectors = world.store.corpora["rows"], world.teaching.vectors("rows")
    assert vectors is not None
    texts = [corpus.text(s) for s in range(corpus.segments)]
    here = texts.index(anchor)
    found = [
        (texts[s], float(vectors[here].astype(float) @ vectors[s].astype(float)))
        for s in range(corpus.segments)
        if corpus.language(s) == language
        and vectors[s].any()
        and corpus.segment_record[s] != corpus.segment_record[here]
    ]
    return sorted(found, key=lambda pair: -pair[1])


def test_negatives_are_the_nearest_of_other_rows_in_the_positives_language(
    world: World, tmp_path: Path
) -> None:
    triplets = mined(world, tmp_path / "t.jsonl", pairs="de", triplets=60)
    assert len(triplets) == 60
    corpus = world.store.corpora["rows"]
    segments = {(corpus.language(s), corpus.text(s)): s for s in range(corpus.segments)}
    for triplet in triplets[::5]:
        anchor = segments[triplet["language"], triplet["anchor"]]
        positive = segments[triplet["candidates_language"], triplet["positive"]]
        assert corpus.segment_record[anchor] == corpus.segment_record[positive]
        assert "de" in (triplet["language"], triplet["candidates_language"])
        expected = plainly(world, triplet["anchor"], triplet["candidates_language"])
        assert len(triplet["negatives"]) == 4
        assert triplet["scores"][1:] == pytest.approx([score for _, score in expected[:4]], abs=1e-4)
        assert set(triplet["negatives"]) <= {text for text, _ in expected[:6]}
    directions = {(t["language"], t["candidates_language"]) for t in triplets}
    assert len(directions) > 20 and all((b, a) in directions for a, b in directions)


def test_blocks_of_the_search_do_not_matter(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora, vectors = [world.store.corpora["rows"]], [world.teaching.vectors("rows")]
    pool = texts_of(corpora, vectors, "en")  # type: ignore[arg-type]
    anchors = np.asarray(vectors[0][pool.segments[:9]], dtype=np.float32)  # type: ignore[index]
    whole = nearest(anchors, pool.groups[:9], pool, vectors, 50)  # type: ignore[arg-type]
    assert np.isinf(whole[1][:, -1]).all()  # fewer than 50 were taught
    for size in (1, 7, 40):
        monkeypatch.setattr(search, "CANDIDATES", size)
        places, scores = nearest(anchors, pool.groups[:9], pool, vectors, 50)  # type: ignore[arg-type]
        np.testing.assert_allclose(scores, whole[1], atol=1e-6)
        finite = np.isfinite(scores)
        assert (
            pool.groups[places][finite] != np.broadcast_to(pool.groups[:9, None], finite.shape)[finite]
        ).all()


def test_margins_and_ranges_are_kept(world: World, tmp_path: Path) -> None:
    every = mined(world, tmp_path / "t.jsonl", pairs="de", triplets=200, negatives=3, range_max=30)
    limited = mined(
        world, tmp_path / "t.jsonl", pairs="de", triplets=200, negatives=3, range_max=30, max_score=0.7,
        absolute_margin=0.05, relative_margin=0.1,
    )  # fmt: skip
    assert any(max(t["scores"][1:]) > 0.7 for t in every)
    assert 0 < len(limited) < len(every)
    for triplet in limited:
        positive, *negatives = triplet["scores"]
        assert max(negatives) <= min(0.7, positive - 0.05, 0.9 * positive) + 1e-4
    skipped = mined(
        world, tmp_path / "t.jsonl", pairs="de", triplets=20, negatives=2, range_min=3, range_max=5
    )
    whole = mined(world, tmp_path / "t.jsonl", pairs="de", triplets=20, negatives=5)
    # A text that stands in two rows is taken once, and then a rank stands for two.
    ranked = {(t["anchor"], t["candidates_language"]): t["scores"] for t in whole}
    same = [t["scores"][1:] == ranked[t["anchor"], t["candidates_language"]][4:6] for t in skipped]
    assert sum(same) >= 15


def test_the_same_command_writes_the_same_bytes_and_another_seed_others(world: World, tmp_path: Path) -> None:
    settings = {"triplets": 50, "sampling": "random", "range_max": 20}
    first = mined(world, tmp_path / "a.jsonl.gz", **settings)
    assert mined(world, tmp_path / "b.jsonl.gz", **settings) == first
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert mined(world, tmp_path / "c.jsonl.gz", **settings, seed=2) != first
    origin = json.loads((tmp_path / "a.jsonl.gz.origin.json").read_text())
    assert origin["teacher"] == world.teaching.manifest["teacher"]["fingerprint"]
    assert origin["options"]["sampling"] == "random"


def test_what_was_mined_is_a_corpus(world: World, tmp_path: Path) -> None:
    triplets = mined(world, tmp_path / "t.jsonl.gz", triplets=30)
    config = CorpusConfig.model_validate(
        {
            "kind": "scored", "format": "jsonl", "path": str(tmp_path / "t.jsonl.gz"), "anchor": "anchor",
            "positive": "positive", "negatives": "negatives", "scores": "scores", "language": {"field": "language"},
            "candidates_language": {"field": "candidates_language"},
        }
    )  # fmt: skip
    check_corpus(config, "corpora.mined")
    records = [record for _, record in read_corpus(config, 1000)]  # type: ignore[misc]
    assert len(records) == 30
    for record, triplet in zip(records, triplets, strict=True):
        assert isinstance(record, ScoredTriplet)
        assert (record.language, record.candidates_language) == (
            triplet["language"],
            triplet["candidates_language"],
        )
        assert list(record.negatives) == [text.strip() for text in triplet["negatives"]]
        assert list(record.scores) == triplet["scores"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "--negatives must be at least 1"),
        ({"range_min": 5, "range_max": 5}, "--range-max must be above --range-min"),
        ({"pairs": "xx"}, "no two languages of a row have vectors with language 'xx'"),
        ({"max_score": -1.0, "triplets": 5}, "no negative fits the margins"),
    ],
)
def test_what_can_not_be_mined_is_refused(world: World, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mined(world, tmp_path / "t.jsonl", **options)
    assert not list(tmp_path.iterdir())


def test_the_commands_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_margin_recipe(tmp_path)
    out = tmp_path / "mined.jsonl.gz"
    arguments = ["--recipe", str(recipe), "--out", str(out), "--vectors", str(tmp_path / "teacher")]
    assert main([*arguments, "--triplets", "12"]) == 0
    assert "12 mined" in capsys.readouterr().out and len(gzip.decompress(out.read_bytes()).splitlines()) == 12
    assert main([*arguments[:-2], "--vectors", str(tmp_path / "nowhere")]) == 2
    assert "holds nothing of a teacher" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text(
        (tmp_path / "rows.jsonl").read_text(encoding="utf-8") + "\n", encoding="utf-8"
    )
    assert main(arguments) == 2
    assert f"{tmp_path / 'rows.jsonl'}: has changed" in capsys.readouterr().err
