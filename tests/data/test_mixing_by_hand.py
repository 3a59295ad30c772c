"""Real text in real languages is mixed as somebody who reads them would: checked by hand, phrase by phrase."""

from pathlib import Path

import pytest
import regex

from data.lexicon import Lexicon
from tests.data.test_mixing import mixed

CORPORA = Path("data/corpora")


@pytest.fixture(scope="module")
def demo():
    return Lexicon.load([CORPORA / "demo/lexicon.tsv.gz"])


@pytest.fixture(scope="module")
def with_thai():
    return Lexicon.load([CORPORA / "demo/lexicon.tsv.gz", CORPORA / "thai/lexicon.tsv"])


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
