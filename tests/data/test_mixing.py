"""Invariants: at least two languages or nothing; translations come from every dictionary that holds the word;
languages without spaces are searched by longest match; placeholders and case survive."""

import pytest

from data.keys import generator
from data.lexicon import Lexicon
from data.mixing import mix

ENTRIES = [
    ("de", "lock", "Schloss"), ("fr", "lock", "serrure"), ("zh", "media player", "媒体播放器"),
    ("ja", "media player", "メディア プレーヤー"), ("ja", "lock", "ロック"), ("de", "media player", "Medienplayer"),
    ("th", "cat", "แมว"), ("de", "cat", "Katze"), ("ar", "cat", "قطة"), ("hi", "cat", "बिल्ली"), ("el", "cat", "γάτα"),
    ("ru", "cat", "кошка"), ("ko", "cat", "고양이"), ("he", "cat", "חתול"), ("tr", "cat", "kedi"), ("vi", "cat", "mèo"),
    ("zh", "cat", "猫咪"), ("ja", "cat", "子猫"), ("de", "name", "Name"),
]  # fmt: skip


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon(ENTRIES)


def mixed(lexicon, text, language, rate=1.0, seed=0):
    words = lexicon.words(language, text)
    return mix(text, language, words, rate, generator("test", language, seed).random(3 * len(words.matches)))


def test_every_dictionary_that_holds_the_word_is_drawn_from(lexicon):
    found = {mixed(lexicon, "the lock is open", "en", seed=i).text for i in range(60)}
    assert found == {f"the {word} is open" for word in ("Schloss", "serrure", "ロック")}


def test_another_language_is_translated_into_english_and_through_it(lexicon):
    found = {mixed(lexicon, "La serrure bloque", "fr", seed=i).text for i in range(60)}
    assert found == {f"La {word} bloque" for word in ("lock", "Schloss", "ロック")}


@pytest.mark.parametrize(
    ("language", "text", "word"),
    [
        ("zh", "在媒体播放器上播放", "媒体播放器"),
        ("ja", "子猫がいる", "子猫"),
        ("th", "ฉันมีแมวสองตัว", "แมว"),
        ("ar", "لدي قطة صغيرة", "قطة"),
        ("hi", "मेरी बिल्ली सोती है", "बिल्ली"),
        ("el", "η γάτα κοιμάται", "γάτα"),
        ("ru", "моя кошка спит", "кошка"),
        ("ko", "제 고양이 입니다", "고양이"),
        ("he", "יש לי חתול קטן", "חתול"),
        ("tr", "benim kedi uyuyor", "kedi"),
        ("vi", "con mèo ngủ", "mèo"),
        ("de", "meine Katze schläft", "Katze"),
        ("en", "my cat sleeps", "cat"),
    ],
)
def test_a_word_is_found_in_its_language_and_replaced(lexicon, language, text, word):
    result = mixed(lexicon, text, language)
    (match,) = lexicon.words(language, text).matches
    assert result is not None and result.languages == 2 and result.replaced == result.translatable
    assert (
        result.replaced == match.words == {"zh": 5, "ja": 2, "th": 2}.get(language, 1)  # characters; แม and ว
    )
    before, after = text.split(word)
    assert result.text.startswith(before) and result.text.endswith(after)
    assert word not in result.text


def test_the_longest_phrase_wins(lexicon):
    (match,) = lexicon.words("en", "the media player").matches
    assert (match.start, match.end) == (4, 16)
    assert {language for language, _ in match.translations} == {"zh", "ja", "de"}


def test_a_word_of_another_script_is_set_off_where_the_text_has_no_spaces(lexicon):
    texts = {mixed(lexicon, "在媒体播放器上播放", "zh", seed=i).text for i in range(40)}
    assert texts == {"在 media player 上播放", "在 Medienplayer 上播放", "在メディア プレーヤー上播放"}


def test_a_text_without_a_translatable_word_is_rejected(lexicon):
    assert mixed(lexicon, "nothing to see here", "en") is None
    assert mixed(lexicon, "", "en") is None
    assert mixed(lexicon, "12 %s ...", "en") is None


def test_a_text_that_would_end_in_one_language_is_rejected(lexicon):
    assert mixed(lexicon, "Cat!", "en") is None


@pytest.mark.parametrize(
    "text", ["Cat %s", "cat {name}!", "<b>Cat</b>", "Cat 12", "%(n)s cat https://cat.org"]
)
def test_placeholders_markup_and_numbers_are_no_second_language(lexicon, text):
    assert mixed(lexicon, text, "en") is None
    assert mixed(lexicon, text + " of", "en") is not None


@pytest.mark.parametrize("language", ["zh-Hans", "zh_CN", "ZH"])
def test_scripts_and_regions_do_not_hide_that_a_language_has_no_spaces(language):
    lexicon = Lexicon([(language, "media player", "媒体播放器"), ("de", "media player", "Medienplayer")])
    text = "在媒体播放器上播放"
    assert "在 Medienplayer 上播放" in {mixed(lexicon, text, language, seed=i).text for i in range(20)}


def test_placeholders_and_markup_are_left_alone(lexicon):
    result = mixed(lexicon, "%(cat)s {cat} <cat> https://cat.org the cat", "en")
    assert result is not None and result.replaced == 1
    assert result.text.startswith("%(cat)s {cat} <cat> https://cat.org the ")


def test_a_translation_that_looks_the_same_is_none(lexicon):
    assert mixed(lexicon, "the name of it", "en") is None


def test_capitals_are_carried_over(lexicon):
    found = {mixed(lexicon, "Cat one", "en", seed=i).text for i in range(200)}
    assert {"Katze one", "Kedi one", "Mèo one", "Кошка one"} <= found
    small = Lexicon([("de", "cat", "Katze"), ("es", "cat", "Gato"), ("fr", "cat", "FAT")])
    assert {mixed(small, "a cat", "en", seed=i).text for i in range(40)} == {"a Katze", "a gato", "a FAT"}
    assert "KEDI one" in {mixed(lexicon, "CAT one", "en", seed=i).text for i in range(200)}


def test_the_rate_is_that_of_translatable_phrases(lexicon):
    text = "a cat and a lock " * 50
    results = [mixed(lexicon, text, "en", rate=0.7, seed=i) for i in range(30)]
    replaced = sum(result.replaced for result in results) / sum(result.translatable for result in results)
    assert abs(replaced - 0.7) < 0.03


def test_phrases_are_entries_of_two_to_four_english_words_and_those_that_are_marked():
    entries = [
        ("de", "cat", "Katze"), ("de", "media player", "Medienplayer"), ("fr", "media player", "lecteur multimédia"),
        ("de", "of the", "des", "phrase"), ("fr", "of the", "du", "phrase"), ("de", "a b c d e", "x y"),
    ]  # fmt: skip
    lexicon = Lexicon(entries)
    text = "the media player of the cat, a b c d e"

    def found(words, text=text):
        return [text[m.start : m.end] for m in words.matches]

    assert lexicon.has_phrases and not Lexicon(entries[:1]).has_phrases
    assert found(lexicon.phrases("en", text)) == ["media player", "of the"]
    assert found(lexicon.words("en", text)) == ["media player", "cat", "a b c d e"]  # no marked one
    german = "Der Medienplayer des Hauses"
    assert found(lexicon.phrases("de", german), german) == ["Medienplayer", "des"]
    result = mix(german, "de", lexicon.phrases("de", german), 1.0, generator("phrase").random(6))
    assert result.text in {
        f"Der {one} {two} Hauses"
        for one in ("Media player", "Lecteur multimédia")
        for two in ("of the", "du")
    }
    assert (result.replaced, result.translatable, result.words) == (2, 2, 4)
