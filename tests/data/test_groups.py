"""Groups are the connected components of "equal text" and "translation of each other", over all corpora."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.encode import number_of
from data.groups import number_groups
from data.preparation import prepare


def plain_groups(texts: list[np.ndarray], joined: list[np.ndarray]) -> list[int]:
    """The definition: pass the smaller number on until nothing changes."""
    numbers = np.concatenate(texts).tolist()
    together = [(i - 1, i) for i, join in enumerate(np.concatenate(joined)) if join]
    together += [(i, k) for i, a in enumerate(numbers) for k, b in enumerate(numbers) if a == b]
    groups = list(numbers)
    while True:
        before = list(groups)
        for i, k in together:
            groups[i] = groups[k] = min(groups[i], groups[k])
        if groups == before:
            return groups


def found_groups(texts: list[np.ndarray], joined: list[np.ndarray], folder: Path) -> tuple[list[int], int]:
    """What number_groups writes, and its rounds."""
    paths = {kind: [folder / f"{kind}{i}" for i in range(len(texts))] for kind in ("text", "join", "group")}
    for path, array in zip(paths["text"] + paths["join"], texts + joined, strict=True):
        array.tofile(path)
    rounds = number_groups(paths["text"], paths["join"], paths["group"], folder / "work")
    return [group for path in paths["group"] for group in np.fromfile(path, np.uint64).tolist()], rounds


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_those_of_the_definition(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(seed)
    monkeypatch.setattr("data.parts.ROWS_OF_A_PART", int(random.integers(1, 40)))  # up to 64 parts
    monkeypatch.setattr("data.spool.ROWS_AT_A_TIME", int(random.integers(1, 9)))
    texts, joined = [], []
    for _ in range(random.integers(1, 4)):
        size = int(random.integers(1, 25))
        texts.append(random.integers(0, 40, size).astype(np.uint64) * np.uint64(2**58) + np.uint64(7))
        joined.append(random.random(size) < 0.4)
        joined[-1][0] = False
    assert found_groups(texts, joined, tmp_path)[0] == plain_groups(texts, joined)


def test_a_chain_of_thousands_is_one_group_in_few_rounds(tmp_path: Path) -> None:
    texts = np.random.default_rng(1).permutation(20_000).astype(np.uint64) << np.uint64(49)
    joined = np.ones(len(texts), bool)
    joined[0] = False
    groups, rounds = found_groups([texts], [joined], tmp_path)
    assert set(groups) == {0} and rounds < 20


def test_rows_that_share_a_text_in_any_language_are_one_group_and_negatives_of_a_triplet_are_not(
    configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    rows = [
        {"en": "a red house", "de": "ein rotes Haus"},
        {"en": "one red house", "de": "ein rotes  Haus", "fr": "une maison rouge"},  # by its German text
        {"de": "ein blauer Hund", "fr": "une maison rouge"},  # by its French text
        {"en": "a green tree", "de": "ein Baum"},
    ]
    sentences = ["ein blauer Hund", "un arbre vert"]
    triplet = {
        "a": "a green tree",
        "p": "a tree that is green",
        "n": ["a red house", "a cat"],
        "s": [5, 1, 0],
    }
    for name, lines in (
        ("rows", [{"t": row} for row in rows]),
        ("texts", [{"text": text} for text in sentences]),
        ("scored", [triplet]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {
        name: {"format": "jsonl", "path": str(tmp_path / f"{name}.jsonl")}
        for name in ("rows", "texts", "scored")
    }
    corpora = {
        "rows": {"kind": "parallel", "translations": "t", **files["rows"]},
        "texts": {"kind": "monolingual", "text": "text", "language": "de", **files["texts"]},
        "scored": {
            "kind": "scored", "anchor": "a", "positive": "p", "negatives": "n", "scores": "s", "language": "en",
            **files["scored"],
        },
    }  # fmt: skip
    store = prepare(configure(corpora=corpora, store=str(tmp_path / "groups")), workers=1)
    of = {
        store.corpora[name].text(i): int(group)
        for name in corpora
        for i, group in enumerate(store.corpora[name].segment_groups)
    }
    first = {"a red house", "ein rotes Haus", "one red house", "une maison rouge", "ein blauer Hund"}
    second = {"a green tree", "ein Baum", "a tree that is green"}
    assert {of[text] for text in first} == {min(number_of(text) for text in first)}
    assert {of[text] for text in second} == {min(number_of(text) for text in second)}
    assert of["a cat"] == number_of("a cat") and of["un arbre vert"] == number_of("un arbre vert")
    assert len(set(of.values())) == 4
