"""Cleaning: off it changes nothing, on every reject is counted by its reason, nothing held out is left to train on."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cleaning.config import CleaningConfig, LanguageRule, effective
from data.cleaning.examination import open_sieve
from data.cleaning.language import found_language
from data.cleaning.repeats import Repeats
from data.cleaning.signatures import bands_of, shingles
from data.cleaning.texts import folded, in_nfc, misfits, number_of_record
from data.config import DataConfig
from data.corpus import CorpusConfig
from data.counts import summary
from data.induction import pairs_with_english
from data.preparation import prepare
from data.recipe import UserError
from data.records import ScoredTriplet, Sentence, TranslationPair, segments
from data.store import TokenStore
from data.workers import WorkerPool
from tests.data.conftest import DEMO

Configure = Callable[..., DataConfig]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A corpus of these rows: translations {"en": ...}, or sentences {"lang": ..., "text": ...}."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    corpus: dict[str, Any] = {"format": "jsonl", "path": str(path)}
    if "text" in rows[0]:
        return corpus | {"kind": "monolingual", "text": "text", "language": {"field": "lang"}}
    path.write_text(
        "".join(json.dumps({"t": row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return corpus | {"kind": "parallel", "translations": "t"}


def texts(store: TokenStore, corpus: str) -> list[str]:
    return [store.corpora[corpus].text(segment) for segment in range(store.corpora[corpus].segments)]


def rejected(store: TokenStore, corpus: str) -> dict[str, dict[str, int]]:
    entry = store.manifest["corpora"][corpus]
    assert entry["read"] == entry["records"] + entry["rejected"]
    assert entry["rejected"] == sum(sum(counts.values()) for counts in entry["rejected_records"].values())
    return entry["rejected_records"]


# ---- a record by itself ----------------------------------------------------------------------------------


def test_nfc_composes_and_leaves_the_rest_alone() -> None:
    assert in_nfc(Sentence("de", "u\u0308ber ﬁn")) == Sentence("de", "über ﬁn")
    pair = TranslationPair((("en", "a"), ("ko", "\u1112\u1161\u11ab")))
    assert in_nfc(pair) == TranslationPair((("en", "a"), ("ko", "한")))
    triplet = ScoredTriplet("de", "o\u0308", "b", ("u\u0308",), (1.0, 0.5))
    assert in_nfc(triplet) == ScoredTriplet("de", "ö", "b", ("ü",), (1.0, 0.5))
    same = Sentence("en", "plain")
    assert in_nfc(same) is same


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((10, 10), [0, 0]), ((10, 49), [0, 0]), ((10, 51), [1, 1]), ((51, 10), [1, 1]), ((10, 12, 90), [0, 0, 1]),
     ((100, 90, 10), [0, 0, 1]), ((4, 30), [0, 0])],
)  # fmt: skip
def test_a_text_whose_length_is_not_that_of_the_others_misfits(
    lengths: list[int], expected: list[int]
) -> None:
    record = TranslationPair(tuple((f"l{i}", "x" * length) for i, length in enumerate(lengths)))
    assert [bool(reason) for reason in misfits(record, 3.0)] == [bool(each) for each in expected]


def test_of_real_translations_in_all_scripts_few_misfit() -> None:
    with gzip.open(DEMO / "udhr.jsonl.gz") as file:
        rows = [TranslationPair(tuple(json.loads(line)["t"].items())) for line in file]
    found = Counter(bool(reason) for row in rows for reason in misfits(row, 3.0))
    assert found[True] <= 0.01 * found[False]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Hello, World!", "hello world"), ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"), ("u\u0308", "Ü"), ("a  b\n", "a b"),
     ("STRASSE", "Straße")],
)  # fmt: skip
def test_what_differs_in_form_alone_is_folded_together(one: str, other: str) -> None:
    assert folded(one) == folded(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1 file", "2 files"), ("?", "!"), ("%s", "%d"), ("cote", "côté")]
)
def test_what_differs_in_letters_is_not(one: str, other: str) -> None:
    assert folded(one) != folded(other) and folded(one)


def test_the_number_of_a_record_does_not_know_of_order_but_of_languages() -> None:
    assert number_of_record([("en", "a"), ("de", "b")]) == number_of_record([("de", "b"), ("en", "a")])
    assert number_of_record([("en", "a"), ("de", "b")]) != number_of_record([("de", "a"), ("en", "b")])


# ---- languages -------------------------------------------------------------------------------------------


def test_the_language_of_real_text_is_found_and_wrong_labels_are() -> None:
    pytest.importorskip("py3langid")
    with gzip.open(DEMO / "mono.jsonl.gz") as file:
        rows = [json.loads(line) for number, line in enumerate(file) if number % 25 == 0]
    rule = LanguageRule()
    judged = [(row, found_language(row["lang"], row["text"], rule)) for row in rows]
    judged = [(row, found) for row, found in judged if found is not None]
    assert len(judged) > 0.7 * len(rows)
    assert sum(bool(found) for _, found in judged) <= 0.01 * len(judged)
    swapped = [found_language("de" if row["lang"] != "de" else "en", row["text"], rule) for row, _ in judged]
    assert sum(bool(found) for found in swapped) >= 0.95 * len(swapped)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [("de", "The door is open and the house is empty.", "en"), ("de", "The door", None), ("xx", "Is open" * 9, None),
     ("nb", "Dette er en norsk setning om været.", ""), ("pt-BR", "A porta está aberta e a casa vazia.", ""),
     ("zh", "这是一个关于天气的中文句子。", ""), ("iw", "הדלת פתוחה והבית ריק לגמרי", "")],
)  # fmt: skip
def test_short_texts_and_unknown_languages_are_not_judged(
    language: str, text: str, expected: str | None
) -> None:
    pytest.importorskip("py3langid")
    assert found_language(language, text, LanguageRule()) == expected


# ---- repeats and near duplicates -------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=200))
def test_repeats_are_all_but_the_first_place_of_each_digest(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int]]
) -> None:
    digests = np.array([(low << 56) | high for low, high in drawn], np.uint64)
    repeats = Repeats(tmp_path_factory.mktemp("r") / "r")
    for start in range(0, len(digests), 7):
        part = digests[start : start + 7]
        repeats.add(part, np.arange(start, start + len(part), dtype=np.uint64))
    seen: set[int] = set()
    expected = {place for place, each in enumerate(digests.tolist()) if each in seen or seen.add(each)}  # type: ignore[func-returns-value]
    assert {int(place) for places in repeats.places() for place in places} == expected


def test_bands_meet_for_near_texts_and_not_for_others() -> None:
    pytest.importorskip("rensa")
    with gzip.open(DEMO / "udhr.jsonl.gz") as file:
        originals = [folded(json.loads(line)["t"]["en"]) for line in file]
    originals = [text for text in originals if len(text) > 150]
    changed = [text.replace(text.split()[7], "changed", 1) for text in originals]
    one, other = (bands_of([shingles(text) for text in each]) for each in (originals, changed))
    assert ((one == other).any(1)).mean() >= 0.9
    crossed = (one[:, None] == one[None]).any(2)
    assert not crossed[~np.eye(len(one), dtype=bool)].any()
    assert bands_of([]).shape == (0, 14) and bands_of([shingles("")]).shape == (1, 14)


# ---- stores ----------------------------------------------------------------------------------------------


def test_a_section_that_asks_for_nothing_changes_no_byte(configure: Configure, tmp_path: Path) -> None:
    plain = prepare(configure(), workers=1)
    empty = prepare(configure(store=str(tmp_path / "other"), cleaning={}), workers=1)
    before, after = files(plain.folder), files(empty.folder)
    assert {name for name in before if before[name] != after.get(name)} == {"manifest.json"}  # its inputs
    assert plain.fingerprint == empty.fingerprint and before.keys() == after.keys()


def test_no_held_out_text_is_trained_on_in_whatever_form_or_language(
    configure: Configure, tmp_path: Path
) -> None:
    long = "Everyone has the right to freedom of thought, conscience and religion, in public or in private."
    corpora = {
        "rows": write(
            tmp_path / "a.jsonl",
            [
                {"en": "First sentence.", "de": "Erster Satz.", "fr": "Phrase une."},
                {"en": "first  SENTENCE", "de": "Der erste Satz"},
                {"en": "Nothing", "de": "Nichts"},
                {
                    "en": long.replace("public", "open"),
                    "de": "Jeder hat das Recht auf Freiheit.",
                    "fr": "Libre",
                },
            ],
        ),
        "sentences": write(
            tmp_path / "b.jsonl",
            [{"lang": "fr", "text": "¡Erster Satz!"}, {"lang": "de", "text": "Anderer Satz"}],
        ),
        "test": {
            **write(
                tmp_path / "c.jsonl", [{"en": "First sentence", "de": "Erster Satz"}, {"en": long, "de": "x"}]
            ),
            "held_out": True,
        },
    }
    store = prepare(configure(corpora=corpora, cleaning={"held_out": "exact"}), workers=1)
    assert texts(store, "rows")[:2] == ["Nothing", "Nichts"] and len(texts(store, "rows")) == 5
    assert texts(store, "sentences") == ["Anderer Satz"] and len(texts(store, "test")) == 4
    assert rejected(store, "rows") == {"held_out_text": {"en": 2}}
    assert rejected(store, "sentences") == {"held_out_text": {"fr": 1}} and not rejected(store, "test")
    pytest.importorskip("rensa")
    store = prepare(configure(corpora=corpora, cleaning={"held_out": "near"}), workers=1, rebuild=True)
    assert texts(store, "rows")[2:] == ["Jeder hat das Recht auf Freiheit.", "Libre"]
    assert store.manifest["corpora"]["rows"]["dropped_texts"] == {"near_held_out": {"en": 1}}


def test_no_held_out_text_of_the_demo_is_left(configure: Configure, tmp_path: Path) -> None:
    demo = {
        name: {
            "kind": "parallel",
            "format": "jsonl",
            "path": str(DEMO / f"{name}.jsonl.gz"),
            "translations": "t",
        }
        for name in ("parallel_test", "udhr")
    }
    with gzip.open(DEMO / "parallel_train.jsonl.gz") as file:
        (tmp_path / "train.jsonl").write_bytes(
            b"".join(line for line, _ in zip(file, range(600), strict=False))
        )
    train = {**demo["udhr"], "path": str(tmp_path / "train.jsonl")}
    held_out = {name: {**corpus, "held_out": True} for name, corpus in demo.items()}
    before = prepare(configure(corpora={"train": train, **held_out}), workers=1)
    found = {name: texts(before, name) for name in ("train", *held_out)}
    after = prepare(
        configure(corpora={"train": train, **held_out}, cleaning={"held_out": "exact"}),
        workers=1,
        rebuild=True,
    )
    kept_out = {folded(text) for name in held_out for text in found[name]}
    contaminated = [text for text in found["train"] if folded(text) in kept_out]
    assert contaminated and not [text for text in texts(after, "train") if folded(text) in kept_out]
    entry = after.manifest["corpora"]["train"]
    assert entry["records"] + entry["rejected"] == 600
    assert all(found[name] == texts(after, name) for name in held_out)


def test_the_first_of_equal_records_is_kept_over_all_corpora(configure: Configure, tmp_path: Path) -> None:
    rows = [{"en": "One", "de": "Eins"}, {"en": "one!", "de": "eins"}, {"en": "One", "de": "Ein"}]
    corpora = {
        "a": write(tmp_path / "a.jsonl", rows),
        "b": write(tmp_path / "b.jsonl", [{"de": "EINS", "en": "one"}, {"en": "Two", "de": "Zwei"}]),
        "c": write(tmp_path / "c.jsonl", [{"lang": "en", "text": "One"}, {"lang": "en", "text": "one."}]),
        "test": {**write(tmp_path / "d.jsonl", rows), "held_out": True},
    }
    store = prepare(configure(corpora=corpora, cleaning={"duplicates": "exact"}), workers=1)
    assert texts(store, "a") == ["One", "Eins", "One", "Ein"] and texts(store, "b") == ["Two", "Zwei"]
    assert texts(store, "c") == ["One"] and len(texts(store, "test")) == 6
    assert rejected(store, "a") == {"duplicate": {"": 1}} and rejected(store, "c") == {"duplicate": {"en": 1}}
    listed = (store.folder / "rejects.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[2] for line in listed] == ["2", "1", "2"]
    corpora["b"]["cleaning"] = {"duplicates": "off"}
    store = prepare(configure(corpora=corpora, cleaning={"duplicates": "exact"}), workers=1, rebuild=True)
    assert texts(store, "b") == ["EINS", "one", "Two", "Zwei"]


def test_near_duplicates_are_found_across_corpora(configure: Configure, tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    with gzip.open(DEMO / "udhr.jsonl.gz") as file:
        long = [text for text in (json.loads(line)["t"]["en"] for line in file) if len(text) > 150][:20]
    corpora = {
        "a": write(tmp_path / "a.jsonl", [{"lang": "en", "text": text} for text in long]),
        "b": write(
            tmp_path / "b.jsonl", [{"lang": "en", "text": text + " So."} for text in (*long, "Something new")]
        ),
    }
    store = prepare(configure(corpora=corpora, cleaning={"duplicates": "near"}), workers=1)
    assert texts(store, "a") == long and texts(store, "b")[-1] == "Something new So."
    assert rejected(store, "b")["near_duplicate"]["en"] >= 18


def test_word_lists_are_learned_from_what_is_left(configure: Configure, tmp_path: Path) -> None:
    rows = [{"en": "One", "de": "Eins"}, {"en": "one", "de": "eins!"}, {"en": "Held", "de": "Gehalten"}]
    corpora = {
        "a": write(tmp_path / "a.jsonl", rows),
        "test": {**write(tmp_path / "b.jsonl", [{"en": "HELD", "de": "x"}]), "held_out": True},
    }
    config = configure(corpora=corpora, cleaning={"duplicates": "exact", "held_out": "exact"})
    with WorkerPool(1) as pool:
        cleaned = open_sieve(config, tmp_path / "cleaning", pool)
    assert pairs_with_english(config, cleaned, 100, lambda count: None) == {"de": [("One", "Eins")]}


def test_files_that_change_while_they_are_read_are_noticed(configure: Configure, tmp_path: Path) -> None:
    corpora = {"a": write(tmp_path / "a.jsonl", [{"en": "One", "de": "Eins"}])}
    config = configure(corpora=corpora, cleaning={"duplicates": "exact"})
    with WorkerPool(1) as pool:
        cleaned = open_sieve(config, tmp_path / "cleaning", pool)
    write(tmp_path / "a.jsonl", [{"en": "One", "de": "Eins"}, {"en": "Two", "de": "Zwei"}])
    with pytest.raises(UserError, match="a.jsonl: has changed while it was read; start again"):
        list(cleaned.read("a"))


def all_rules(configure: Configure, tmp_path: Path, **changes: Any) -> DataConfig:
    rules = {
        "unicode": "nfc",
        "length_ratio": 2.5,
        "language": "on",
        "duplicates": "near",
        "held_out": "near",
    }
    return configure(cleaning=rules, **changes)


def test_bytes_are_the_same_for_any_number_of_workers_and_cuts(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rensa")
    pytest.importorskip("py3langid")
    configure()  # writes the files
    rows = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(rows + rows[:3000] + (tmp_path / "held_out.jsonl").read_bytes())
    whole = files(prepare(all_rules(configure, tmp_path), workers=1).folder)
    monkeypatch.setattr("data.cleaning.examination.TEXTS_PER_CHUNK", 50)
    monkeypatch.setattr("data.build.SEGMENTS_PER_CHUNK", 100)
    store = prepare(all_rules(configure, tmp_path, store=str(tmp_path / "cut")), workers=2)
    assert files(store.folder) == whole
    assert not (store.folder / "cleaning").exists()
    assert rejected(store, "rows").keys() >= {"duplicate", "held_out_text"}
    listed = (store.folder / "counts.tsv").read_text().splitlines()
    assert listed[0].split("\t") == ["corpus", "language", "outcome", "of", "count"]
    entry = store.manifest["corpora"]["rows"]
    assert f"rows\t\tkept\trecord\t{entry['records']}" in listed and "rejected" in summary(store.manifest)
    lost = sum(
        int(line.split("\t")[4]) for line in listed if line.startswith("rows") and "\trecord\t" in line
    )
    assert lost == entry["read"]


def test_a_corpus_whose_labels_are_wrong_is_refused_by_name(configure: Configure, tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    with gzip.open(DEMO / "parallel_train.jsonl.gz") as file:
        rows = [json.loads(line)["t"] for line in file][:400]
    swapped = [{"en": row["de"], "de": row["en"]} for row in rows if {"de", "en"} <= row.keys()]
    corpora = {"rows": write(tmp_path / "a.jsonl", swapped)}
    with pytest.raises(
        UserError, match=r"corpora.rows: \d+ % of its texts in 'de' are in another language, .*'en'"
    ):
        prepare(configure(corpora=corpora, cleaning={"language": "on"}), workers=1)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("rules", "package"),
    [({"language": "on"}, "py3langid"), ({"duplicates": "near"}, "rensa"), ({"held_out": "near"}, "rensa")],
)
def test_a_package_that_is_not_installed_is_asked_for_before_the_work(
    configure: Configure, rules: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.cleaning.language import identifier

    identifier.cache_clear()
    for name in (package, f"{package}.langid"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        prepare(configure(cleaning=rules), workers=1, say=lambda message: pytest.fail(message))


def test_a_corpus_has_its_own_rules_and_held_out_ones_few_of_those_for_all() -> None:
    whole = CleaningConfig.model_validate({"unicode": "nfc", "length_ratio": 3, "held_out": "exact"})
    own = CleaningConfig.model_validate({"length_ratio": "off", "language": "on"})
    found = effective(whole, own, held_out=False)
    assert (found.unicode, found.length_ratio, found.held_out) == ("nfc", None, "exact") and found.language
    for section in (whole, own):  # what is written down reads back
        assert CleaningConfig.model_validate(section.model_dump(mode="json")) == section
    found = effective(whole, None, held_out=True)
    assert found == CleaningConfig(unicode="nfc")
    corpus = {"kind": "monolingual", "format": "text", "path": "a", "language": "de", "held_out": True}
    with pytest.raises(ValueError, match="are for corpora that are trained on"):
        CorpusConfig.model_validate({**corpus, "cleaning": {"held_out": "exact"}})


def test_texts_of_one_record_survive_without_the_others() -> None:
    record = TranslationPair((("en", "a"), ("de", "b"), ("fr", "c" * 99)))
    assert segments(record)[2][0] == "fr" and misfits(record, 2.0)[2] == "length_ratio"
