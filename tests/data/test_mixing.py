"""Invariants: at least two languages or nothing; translations come from every dictionary that holds the word;
languages without spaces are searched by longest match; placeholders and case survive."""

import gzip
from pathlib import Path

import pytest
import regex

from data.keys import generator
from data.lexicon import Lexicon
from data.mixing import mix, mix_sentences, sentences_of
from data.recipe import UserError

ENTRIES = [
    ("de", "lock", "Schloss"), ("fr", "lock", "serrure"), ("zh", "media player", "媒体播放器"),
    ("ja", "media player", "メディア プレーヤー"), ("ja", "lock", "ロック"), ("de", "media player", "Medienplayer"),
    ("th", "cat", "แมว"), ("de", "cat", "Katze"), ("ar", "cat", "قطة"), ("hi", "cat", "बिल्ली"), ("el", "cat", "γάτα"),
    ("ru", "cat", "кошка"), ("ko", "cat", "고양이"), ("he", "cat", "חתול"), ("tr", "cat", "kedi"), ("vi", "cat", "mèo"),
    ("zh", "cat", "猫咪"), ("ja", "cat", "子猫"), ("de", "name", "Name"),
]  # fmt: skip

CORPORA = Path("data/corpora")


@pytest.fixture(scope="module")
def demo():
    return Lexicon.load([CORPORA / "demo/lexicon.tsv.gz"])


@pytest.fixture(scope="module")
def with_thai():
    return Lexicon.load([CORPORA / "demo/lexicon.tsv.gz", CORPORA / "thai/lexicon.tsv"])


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon(ENTRIES)


def mixed(lexicon, text, language, rate=1.0, seed=0):
    return mix(text, language, lexicon.words(language, text), rate, generator("test", seed))


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


# Checked by hand: the phrases of the text that the demo's lexicon holds, each with one of its translations.
BY_HAND = {
    "en": ("Enter the user name and the password.",
           {"Enter": ("de", "betreten"), "user": ("de", "benutzer"), "name": ("es", "nombre"),
            "and": ("de", "und"), "password": ("fr", "mot de passe")}),
    "ja": ("新しいユーザーを追加して、パスワードを変更してください。",
           {"ユーザーを追加": ("en", "add user"), "パスワード": ("de", "passwort"), "変更": ("en", "change")}),
    "zh": ("请输入您的用户名和密码以登录系统。",
           {"输入": ("en", "input"), "用户名": ("de", "benutzername"), "密码": ("en", "password"),
            "登录": ("en", "sign in"), "系统": ("en", "system")}),
    "ar": ("أدخل كلمة المرور واسم المستخدم", {"كلمة المرور": ("en", "password")}),
    "hi": ("कृपया अपना पासवर्ड और नाम दर्ज करें",
           {"पासवर्ड": ("en", "password"), "और": ("de", "und"), "नाम": ("en", "name")}),
    "de": ("Geben Sie das Passwort und den Namen ein.", {"Passwort": ("en", "password"), "und": ("en", "and")}),
    "fr": ("Entrez le nom d'utilisateur et le mot de passe.",
           {"nom d'utilisateur": ("en", "username"), "et": ("en", "and"), "mot de passe": ("de", "passwort")}),
    "es": ("Introduzca el nombre y la contraseña.",
           {"nombre": ("en", "name"), "y": ("de", "und"), "contraseña": ("en", "password")}),
    "ru": ("Введите имя и пароль.",
           {"имя": ("en", "first name"), "и": ("en", "and"), "пароль": ("de", "passwort")}),
    "tr": ("Kullanıcı adı ve parola girin.", {"Kullanıcı adı": ("en", "username"), "ve": ("de", "und")}),
    "ko": ("사용자 이름 과 비밀번호 입력", {"사용자 이름": ("de", "benutzername"), "입력": ("en", "input")}),
    "vi": ("Nhập tên và mật khẩu",
           {"tên": ("en", "name"), "và": ("en", "and"), "mật khẩu": ("de", "passwort")}),
    "he": ("הזן שם וסיסמה", {"שם": ("en", "name")}),
    "el": ("Εισαγάγετε το όνομα και τον κωδικό", {"και": ("de", "und")}),
    "pl": ("Wprowadź nazwę i hasło", {"i": ("en", "and"), "hasło": ("en", "password")}),
    "uk": ("Введіть назву та пароль", {"та": ("en", "and"), "пароль": ("de", "passwort")}),
    "id": ("Masukkan nama dan kata sandi",
           {"nama": ("en", "name"), "dan": ("en", "and"), "kata sandi": ("en", "password")}),
}  # fmt: skip


@pytest.mark.parametrize("language", BY_HAND)
def test_real_text_is_mixed_by_the_demo_lexicon_as_by_hand(demo, language):
    text, expected = BY_HAND[language]
    matches = demo.words(language, text).matches
    assert [text[m.start : m.end] for m in matches] == list(expected)
    for match, translation in zip(matches, expected.values(), strict=True):
        assert translation in {(target, found.casefold()) for target, found in match.translations}
        assert all(target != language for target, _ in match.translations)
    result = mixed(demo, text, language)
    assert result.languages >= 2 and result.replaced == result.translatable == sum(m.words for m in matches)
    rest = regex.split("|".join(regex.escape(phrase) for phrase in expected), text)
    assert result.text.startswith(rest[0]) and result.text.endswith(rest[-1])
    position = 0  # what was not translated stands there in its order
    for piece in rest:
        position = result.text.index(piece, position) + len(piece)


# Out of the Universal Declaration of Human Rights, and two sentences of ours for entries within entries.
THAI_BY_HAND = {
    "คนทุกคนมีสิทธิในการดำรงชีวิต เสรีภาพ และความมั่นคงแห่งตัวตน": {"คน": ("en", "person")},  # twice; no นก in ในการ
    "ครอบครัวเป็นหน่วยธรรมชาติ และหลักมูลของสังคมและมีสิทธิที่จะได้รับความคุ้มครองจากสังคมและรัฐ": {
        "ครอบครัว": ("de", "familie")
    },
    "มารดาและเด็กมีสิทธิที่จะรับการดูแลรักษาและการช่วยเหลือเป็นพิเศษ": {"เด็ก": ("fr", "enfant")},
    "มีปลาหมึกยักษ์และปลาในทะเล": {"ปลาหมึกยักษ์": ("en", "octopus"), "ปลา": ("de", "fisch")},
    "รถไฟไปโรงแรม": {"รถไฟ": ("en", "train"), "โรงแรม": ("fr", "hôtel")},
}


@pytest.mark.parametrize("text", THAI_BY_HAND)
def test_real_thai_text_is_mixed_by_a_real_word_list_as_by_hand(with_thai, text):
    expected = THAI_BY_HAND[text]
    matches = with_thai.words("th", text).matches
    found = [text[match.start : match.end] for match in matches]
    assert set(found) == set(expected) and len(found) == sum(
        text.count(word) - sum(text.count(longer) for longer in expected if word in longer and word != longer)
        for word in expected
    )
    for match, word in zip(matches, found, strict=True):
        assert expected[word] in {(target, other.casefold()) for target, other in match.translations}
        assert all(target != "th" for target, _ in match.translations)
    for seed in range(20):
        result = mixed(with_thai, text, "th", seed=seed)
        assert result.languages >= 2 and result.replaced == result.translatable
        assert not any(word in result.text for word in expected)
        for rest in regex.split("|".join(sorted(expected, key=len, reverse=True)), text):
            assert rest in result.text


def test_thai_is_written_where_another_language_is_mixed(with_thai):
    found = {mixed(with_thai, "the fish is small", "en", seed=seed).text for seed in range(300)}
    assert any("ปลา" in text for text in found) and any("poisson" in text for text in found)


@pytest.mark.parametrize(
    ("language", "text", "words", "expected"),
    [
        # the longest entry, and no entry whose last letter has another tone mark in the text (แก in แก้ว)
        ("th", "กรุณาใส่รหัสผ่านและชื่อผู้ใช้", ["รหัสผ่าน", "ชื่อผู้ใช้", "ผู้ใช้", "ชื่อ"], ["รหัสผ่าน", "ชื่อผู้ใช้"]),
        ("th", "แก้วน้ำ", ["แก", "น้ำ"], ["น้ำ"]),
        # no word begins after a vowel that belongs to it, or ends before one
        ("th", "ในการ", ["นก"], []),
        ("lo", "ໃນກາ", ["ນກ"], []),
        ("km", "បញ្ចូលពាក្យសម្ងាត់របស់អ្នក", ["ពាក្យសម្ងាត់", "ពាក្យ"], ["ពាក្យសម្ងាត់"]),
        ("lo", "ໃສ່ລະຫັດຜ່ານຂອງທ່ານ", ["ລະຫັດຜ່ານ", "ລະຫັດ"], ["ລະຫັດຜ່ານ"]),
        ("my", "သင့်စကားဝှက်ကိုထည့်ပါ", ["စကားဝှက်", "စကား"], ["စကားဝှက်"]),
        ("ja", "Japanの首都", ["pan", "首都"], ["首都"]),  # a word of another script is whole
    ],
)
def test_the_longest_entry_is_found_in_running_text(language, text, words, expected):
    lexicon = Lexicon([(language, f"word {number}", word) for number, word in enumerate(words)])
    assert [text[m.start : m.end] for m in lexicon.words(language, text).matches] == expected


def test_a_script_or_region_reads_the_lexicon_of_its_language_and_is_no_second_one(demo):
    text = BY_HAND["zh"][0]
    assert demo.name_of("zh-Hans-CN") == demo.name_of("zh_CN") == "zh" and demo.name_of("en-GB") == "en"
    assert demo.name_of("xx") is None and mixed(demo, text, "xx") is None
    assert demo.words("zh-Hans", text) == demo.words("zh", text)
    both = Lexicon([("zh", "cat", "猫咪"), ("zh-Hant", "cat", "貓咪"), ("de", "cat", "Katze")])
    assert both.translations("zh-Hans", "猫咪") == (("en", "cat"), ("de", "Katze"))
    assert both.translations("zh-Hant", "貓咪") == (("en", "cat"), ("de", "Katze"))


def test_the_realised_rate_on_real_text_is_the_nominal_one(demo):
    texts = {language: " ".join([text] * 6) for language, (text, _) in BY_HAND.items()}
    for rate in (0.3, 0.7, 1.0):
        replaced = translatable = 0
        for language, text in texts.items():
            for seed in range(8):
                result = mixed(demo, text, language, rate, seed)
                replaced, translatable = replaced + result.replaced, translatable + result.translatable
        assert abs(replaced / translatable - rate) < 0.04, rate


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
    result = mix(german, "de", lexicon.phrases("de", german), 1.0, generator("phrase"))
    assert result.text in {
        f"Der {one} {two} Hauses"
        for one in ("Media player", "Lecteur multimédia")
        for two in ("of the", "du")
    }
    assert (result.replaced, result.translatable, result.words) == (2, 2, 4)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Hello world. How are you? 3.5 e.g. this.", ["Hello world. ", "How are you? ", "3.5 e.g. this."]),
        ("你好。今天天气很好！我们走吧", ["你好。", "今天天气很好！", "我们走吧"]),
        ("「行く。」と言った。はい。", ["「行く。」", "と言った。", "はい。"]),
        ("यह है। वह है।  ठीक", ["यह है। ", "वह है।  ", "ठीक"]),
        ("ما هذا؟ هذا كتاب.", ["ما هذا؟ ", "هذا كتاب."]),
        ('He said "Go." Then... left!', ['He said "Go." ', "Then... left!"]),
        ("...", ["..."]),
        ("", []),
    ],
)
def test_sentences_end_at_the_marks_of_every_script(text, sentences):
    assert sentences_of(text) == sentences and "".join(sentences) == text


def test_every_second_sentence_is_replaced_by_its_translation():
    english = "The door is open. Close it! Now go. Thanks."
    others = [
        ("zh", "门开着。关上它！现在走。谢谢。"),
        ("de", "Die Tür ist offen. Schließe sie! Geh jetzt. Danke."),
        ("fr", "La porte est ouverte. Fermez-la!"),  # another number of sentences: no translation of each
        ("en-GB", "The door's open. Shut it! Go now. Cheers."),  # no other language
    ]
    seen = set()
    for seed in range(60):
        result = mix_sentences(english, "en", others, generator(seed))
        assert result.languages in (2, 3) and result.replaced in (6, 3) and result.words == 9
        seen.add(result.text)
    first = {(a, b) for a in ("门开着。", "Die Tür ist offen.") for b in ("现在走。", "Geh jetzt.")}
    second = {(a, b) for a in ("关上它！", "Schließe sie!") for b in ("谢谢。", "Danke.")}
    assert seen == {f"{a} Close it! {b} Thanks." for a, b in first} | {
        f"The door is open. {a} Now go. {b}" for a, b in second
    }


def test_a_sentence_of_a_text_without_spaces_is_set_off():
    chinese = "门开着。关上它！现在走。"
    others = [("en", "The door is open. Close it! Now go.")]
    found = {mix_sentences(chinese, "zh", others, generator(seed)).text for seed in range(20)}
    assert found == {"The door is open. 关上它！ Now go.", "门开着。 Close it! 现在走。"}


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("One sentence only.", [("de", "Nur ein Satz.")]),
        ("Two. Sentences.", []),
        ("Two. Sentences.", [("de", "Drei. Kurze. Sätze.")]),
        ("Two. Sentences.", [("en-US", "Two. Phrases.")]),
        ("OK. Bluetooth.", [("de", "OK. Bluetooth.")]),  # left untranslated
    ],
)
def test_without_sentences_that_correspond_there_is_nothing_to_replace(text, others):
    assert all(mix_sentences(text, "en", others, generator(seed)) is None for seed in range(8))


@pytest.mark.parametrize("kept", [1, 2, 30, -8, -1])
def test_a_torn_lexicon_is_refused_with_its_name(tmp_path, kept):
    path = tmp_path / "lexicon.tsv.gz"
    path.write_bytes(gzip.compress("".join(f"de\tcat {i}\tKatze {i}\n" for i in range(1000)).encode())[:kept])
    with pytest.raises(UserError, match=r"lexicon\.tsv\.gz"):
        Lexicon.load([path])


def test_a_lexicon_is_unpacked_by_its_content_not_by_its_name(tmp_path):
    for name, pack in (("plain.gz", bytes), ("packed.tsv", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b"de\tcat\tKatze\r\n"))
        assert Lexicon.load([tmp_path / name]).translations("en", "cat") == (("de", "Katze"),)


def test_a_bad_lexicon_names_file_and_line(tmp_path):
    path = tmp_path / "lexicon.tsv"
    path.write_text("de\tcat\tKatze\nde\tdog\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lexicon\.tsv, line 2: expected language, English and translation"):
        Lexicon.load([path])
    with pytest.raises(UserError, match="Check the path under 'lexicons'"):
        Lexicon.load([tmp_path / "none.tsv"])
