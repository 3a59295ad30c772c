"""What is found part by part between spaces is what is found word by word in the whole text."""

import gzip
import json
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.lexicon import Lexicon
from data.lexicon_search import Search

LEXICON = Lexicon(
    [
        ("de", "cat", "Katze"),
        ("de", "by the way", "übrigens"),
        ("de", "way", "Weg"),
        ("fr", "by", "par"),
        ("fr", "the way home", "le retour"),
        ("de", "in front of the old house", "vor dem alten Haus"),  # longer than what is looked for
        ("de", "street", "Straße"),
        ("fr", "STRASSE way", "chemin"),
        ("fr", "street-cat", "chat de rue"),
        ("fr", "l'amour fou", "mad love"),
        ("ko", "cat", "고양이"),
    ]
)
PIECES = (
    "by|the|way|home|cat|Cat|STRASSE|straße|street-cat|street|l'amour|fou|Katze|Weg|le|retour|42|½".split("|")
)
MARKS = " | | |  |\t|\n|\u00a0|.|, |-|'|’| - |%s|://|\u0301|日|{by the}|%(way)s|<b>".split("|")
TEXTS = st.lists(st.sampled_from(PIECES + MARKS), max_size=14)


def search(lexicon):
    """(that for words, that for phrases)."""
    return lexicon._search_words, lexicon._search_phrases


@settings(max_examples=500, deadline=None)
@given(TEXTS.map("".join), st.sampled_from(["en", "de", "fr", "ko", "sw", "ja"]))
@example("by the way home", "en")
@example("(by the way-home), by", "en")
@example("by the  way by the\tway", "en")
@example("by the by the way. the way home by", "en")
@example("in front of the old house", "en")
@example("street-Straße-l'amour fou", "en")
def test_of_any_text(text, language):
    name = LEXICON.name_of(language) or ""
    for one in search(LEXICON):
        again = one(language, name, text)
        assert again == one(language, name, text) == one.in_any_text(language, name, text)


def test_of_the_demo_in_all_its_languages():
    lexicon = Lexicon.load([Path("data/corpora/demo/lexicon.tsv.gz")])
    of_several = 0
    with gzip.open("data/corpora/demo/parallel_test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            for language, text in json.loads(line)["t"].items():
                name = lexicon.name_of(language)
                for one in search(lexicon):
                    found = one(language, name, text)
                    assert found == one.in_any_text(language, name, text)
                    of_several += sum(match.words > 1 for match in found.matches)
    assert of_several > 500


def test_it_forgets(monkeypatch):
    monkeypatch.setattr("data.lexicon_search._MOST_PARTS", 8)
    one = Search(LEXICON._words, 5)
    for number in range(50):
        for language in ("en", "de"):
            text = f"cat by{number} the{number} way. Katze{number} by the way"
            assert one(language, language, text) == one.in_any_text(language, language, text)
            assert one._kept == sum(map(len, one._parts.values())) <= 8
