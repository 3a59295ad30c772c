"""Scripts of pieces and of languages, found in real text: what counts as written in the right script."""

from pathlib import Path

import numpy as np
import pytest

from data.recipe import parse_recipe, read_recipe
from data.scripts import find_scripts, script_of
from data.store import TokenStore
from data.tokenizer import Tokenizer
from training.config import Recipe

WANTED = {
    "ar": {"Arabic"},
    "el": {"Greek"},
    "he": {"Hebrew"},
    "hi": {"Devanagari"},
    "ja": {"Han", "Hiragana", "Katakana"},
    "ko": {"Hangul"},
    "ru": {"Cyrillic"},
    "uk": {"Cyrillic"},
    "zh": {"Han"},
}


@pytest.fixture(scope="module")
def store(small_recipe):
    return TokenStore.open(Path(parse_recipe(read_recipe(small_recipe), Recipe).store))


@pytest.fixture(scope="module")
def counted(store):
    tokenizer = Tokenizer.open(store.tokenizer_folder)
    return tokenizer, store.ids_of_languages()


@pytest.mark.parametrize(
    ("piece", "script"),
    [
        ("▁the", "Latin"), ("Größe", "Latin"), ("ști", "Latin"), ("▁привет", "Cyrillic"), ("日本", "Han"),
        ("です", "Hiragana"), ("ファイル", "Katakana"), ("▁한국", "Hangul"), ("สวัสดี", "Thai"), ("हिन्दी", "Devanagari"),
        ("مرحبا", "Arabic"), ("ქართ", "Georgian"), ("▁", None), ("123", None), ("…!", None), ("", None),
        ("Aは日本", "Han"), ("𐤀𐤁", "other"),
    ],
)  # fmt: skip
def test_the_script_of_a_piece_is_that_of_most_of_its_letters(piece, script):
    assert script_of(piece) == script


def test_ids_are_counted_by_language_in_the_training_texts_alone(store, counted):
    tokenizer, counts = counted
    expected = np.zeros_like(counts)
    for corpus in store.corpora.values():
        if not corpus.held_out:
            for s in range(corpus.segments):
                np.add.at(expected[corpus.segment_language[s]], corpus.ids(s), 1)
    assert np.array_equal(counts, expected)


def test_every_language_of_the_demo_is_written_in_its_own_script(store, counted):
    tokenizer, counts = counted
    pieces = tokenizer.pieces(range(tokenizer.vocabulary_size))
    scripts = find_scripts(pieces, counts)
    assert len(store.languages) == 22
    for number, language in enumerate(store.languages):
        found = {scripts.names[i] for i in np.flatnonzero(scripts.of_languages[number])}
        assert found == WANTED.get(language, {"Latin"}), language
    assert (scripts.of_ids[:4] == 0).all() and scripts.of_ids[tokenizer.mask_id] == 0
    assert not scripts.of_languages[:, 0].any()


def test_a_language_without_text_is_written_in_no_script():
    scripts = find_scripts(["", "", "", "", "a", "б", ""], np.array([[0] * 7, [0, 0, 0, 0, 1, 9, 0]]))
    assert scripts.names == ("", "Cyrillic", "Latin")
    assert scripts.of_languages.tolist() == [[False] * 3, [False, True, False]]
