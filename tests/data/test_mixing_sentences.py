"""Every second sentence in another language: where sentences end, and which correspond."""

import pytest

from data.keys import generator
from data.mixing import mix_sentences, sentences_of


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
