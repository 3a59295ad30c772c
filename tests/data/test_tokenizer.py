"""Tokenizer: sentencepiece's own segmentation, XLM-R's ids, and the same ids through AutoTokenizer."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import sentencepiece
from transformers import AutoTokenizer

import data.tokenizer_training
from data.config import TrainTokenizerConfig
from data.recipe import UserError
from data.tokenizer import Tokenizer, copy_tokenizer
from data.tokenizer_training import train_tokenizer

DEMO = Path("data/corpora/demo")


def demo_sentences(name: str = "mono.jsonl.gz", every: int = 20) -> list[tuple[str, str]]:
    with gzip.open(DEMO / name) as file:
        rows = [json.loads(line) for number, line in enumerate(file) if number % every == 0]
    return [
        pair for row in rows for pair in (row["t"].items() if "t" in row else [(row["lang"], row["text"])])
    ]


class Trained(NamedTuple):
    folder: Path
    sentencepiece_model: bytes


def train(folder: Path, sentences: Iterable[tuple[str, str]], config: TrainTokenizerConfig) -> Trained:
    models = []
    write = data.tokenizer_training.write_tokenizer

    def spy(model: bytes, folder: Path) -> None:
        models.append(model)
        write(model, folder)

    pairs = list(sentences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.tokenizer_training, "write_tokenizer", spy)
        train_tokenizer(lambda: pairs, config, folder)
    return Trained(folder, models[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = TrainTokenizerConfig(vocabulary_size=4000)
    return train(tmp_path_factory.mktemp("trained"), demo_sentences(), config)


def test_ids_are_laid_out_as_in_xlm_r(trained: Trained) -> None:
    tokenizer = Tokenizer.open(trained.folder)
    assert tokenizer.vocabulary_size == 4000
    assert tokenizer.special_ids == (0, 1, 2, 3, 3999)
    assert tokenizer.pieces(tokenizer.special_ids) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def test_pieces_equal_sentencepiece_in_every_language(trained: Trained) -> None:
    tokenizer = Tokenizer.open(trained.folder)
    original = sentencepiece.SentencePieceProcessor(model_proto=trained.sentencepiece_model)
    sentences = demo_sentences("parallel_test.jsonl.gz", 2) + demo_sentences("udhr.jsonl.gz", 3)
    different: Counter[str] = Counter()
    for (language, text), ids in zip(
        sentences, tokenizer.encode([text for _, text in sentences]), strict=True
    ):
        # <unk> is sentencepiece's 0 and our 3; the pieces follow
        expected = [3 if number == 0 else number + 3 for number in original.encode(text)]
        different[language] += ids.tolist() != expected
    assert len(different) == 22 and not +different


@pytest.mark.parametrize(
    "text", ["", "  ", "\u200b", " a   b\t", "ＡＢＣ①", "e\u0301", "\ufeffx", "a\u2028b\u0085", "½", "\x00a"]
)
def test_odd_texts_are_normalised_as_in_sentencepiece(trained: Trained, text: str) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=trained.sentencepiece_model)
    expected = [3 if number == 0 else number + 3 for number in original.encode(text)]
    assert Tokenizer.open(trained.folder).encode([text])[0].tolist() == expected


def test_auto_tokenizer_gives_the_same_ids_with_xlm_r_specials(trained: Trained) -> None:
    ours = Tokenizer.open(trained.folder)
    theirs = AutoTokenizer.from_pretrained(trained.folder)
    texts = [text for _, text in demo_sentences("udhr.jsonl.gz", 5)]
    encoded = [ids.tolist() for ids in ours.encode(texts)]
    assert theirs(texts)["input_ids"] == [[0, *ids, 2] for ids in encoded]
    pairs = theirs(texts[:-1], texts[1:])["input_ids"]
    assert pairs == [[0, *a, 2, 2, *b, 2] for a, b in zip(encoded, encoded[1:], strict=False)]
    assert [theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert theirs.mask_token_id == ours.mask_id == len(theirs) - 1
    assert theirs("a <mask>")["input_ids"][-2] == ours.mask_id  # written by a caller who wants a prediction
    assert theirs.model_max_length == 512


def test_special_tokens_written_in_a_text_stay_text(trained: Trained) -> None:
    tokenizer = Tokenizer.open(trained.folder)
    for ids in tokenizer.encode(["<mask> </s>a<s> <pad>", "x<mask>", "<unk>"]):
        assert not set(ids.tolist()) & {0, 1, 2, tokenizer.mask_id}


def test_decoding_gives_the_text_back(trained: Trained) -> None:
    tokenizer = Tokenizer.open(trained.folder)
    sentence = "The quick connection settings of 2 devices"
    ids = tokenizer.encode([sentence])[0]
    assert tokenizer.decode(ids) == sentence
    assert tokenizer.decode([0, *ids[:2], tokenizer.mask_id, 2]).endswith("<mask> </s>")


def test_digits_are_pieces_of_their_own(trained: Trained) -> None:
    tokenizer = Tokenizer.open(trained.folder)
    pieces = tokenizer.pieces(range(tokenizer.vocabulary_size))
    assert not [piece for piece in pieces if sum(character.isdigit() for character in piece) > 1]


def test_training_is_the_same_for_every_run_and_differs_by_seed(tmp_path: Path) -> None:
    sentences = demo_sentences(every=100)
    config = TrainTokenizerConfig(vocabulary_size=1500, maximum_sentences=150)
    digests = [
        Tokenizer.open(
            train(tmp_path / str(run), sentences, config.model_copy(update={"seed": seed})).folder
        ).fingerprint
        for run, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_soft_limit_takes_what_the_corpora_yield_and_keeps_the_layout(tmp_path: Path) -> None:
    sentences = demo_sentences(every=100)
    config = TrainTokenizerConfig(vocabulary_size=60000, soft_limit=True)
    folder, model = train(tmp_path, sentences, config)
    tokenizer = Tokenizer.open(folder)
    assert 1000 < tokenizer.vocabulary_size < 60000
    assert (
        tokenizer.mask_id == tokenizer.vocabulary_size - 1 == len(AutoTokenizer.from_pretrained(folder)) - 1
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    assert tokenizer.vocabulary_size == pieces + 4  # <unk> stands for four of ours; and <mask>
    exact = TrainTokenizerConfig(vocabulary_size=1500)
    soft = exact.model_copy(update={"soft_limit": True})
    fingerprints = [
        Tokenizer.open(train(tmp_path / name, sentences, each).folder).fingerprint
        for name, each in (("exact", exact), ("soft", soft))
    ]
    assert fingerprints[0] == fingerprints[1]  # where there are enough pieces it changes nothing


@pytest.mark.parametrize(("temperature", "maximum"), [(0.3, 10**6), (0.3, 120), (0.0, 10**6), (1.0, 10**6)])
def test_languages_are_weighted_by_characters_to_the_power_of_the_temperature(
    temperature: float, maximum: int
) -> None:
    sentences = [
        (language, text) for i, (language, text) in enumerate(demo_sentences(every=4)) if language != "hi"
    ]
    sentences += [pair for pair in demo_sentences(every=1) if pair[0] == "hi"][:20]
    config = TrainTokenizerConfig(temperature=temperature, maximum_sentences=maximum)
    language_of = {" ".join(text.split()): language for language, text in sentences}
    characters: Counter[str] = Counter()
    for language, text in sentences:
        characters[language] += len(text)
    weighted: dict[str, float] = defaultdict(float)
    lines = list(data.tokenizer_training._weighted_sentences(lambda: sentences, config))
    for text, weight in (line.split("\t") for line in lines):
        weighted[language_of[text]] += len(text) * int(weight)
    assert len(lines) <= maximum + len(characters)
    power = sum(count**temperature for count in characters.values())
    for language, count in characters.items():
        share = weighted[language] / sum(weighted.values())
        assert share == pytest.approx(count**temperature / power, rel=0.5 if maximum == 120 else 0.2)


def test_a_vocabulary_that_does_not_fit_the_corpora_names_the_remedy(tmp_path: Path) -> None:
    sentences = demo_sentences(every=200)
    with pytest.raises(UserError, match="too few pieces; set it to [0-9]+ or less") as error:
        train_tokenizer(lambda: sentences, TrainTokenizerConfig(vocabulary_size=60000), tmp_path)
    largest = int(str(error.value).split("set it to ")[1].split()[0])
    train_tokenizer(lambda: sentences, TrainTokenizerConfig(vocabulary_size=largest), tmp_path)
    with pytest.raises(UserError, match="different characters; set it well above"):
        train_tokenizer(lambda: sentences, TrainTokenizerConfig(vocabulary_size=100), tmp_path)
    with pytest.raises(UserError, match="no text to train on"):
        train_tokenizer(list, TrainTokenizerConfig(), tmp_path)


def test_a_folder_that_is_no_tokenizer_is_refused_with_the_remedy(tmp_path: Path, trained: Trained) -> None:
    with pytest.raises(UserError, match="no such tokenizer folder"):
        Tokenizer.open(tmp_path / "nowhere")
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"x")
    with pytest.raises(UserError, match="no tokenizer.json .*holds sentencepiece.bpe.model.*save_pretrained"):
        Tokenizer.open(tmp_path)
    for content in ("{}", "not json", '{"version": "1.0"}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match="not a tokenizer"):
            Tokenizer.open(tmp_path)
    values = json.loads((trained.folder / "tokenizer.json").read_text())
    for token in values["added_tokens"]:
        token["id"] = {0: 1, 1: 0}.get(token["id"], token["id"])
    vocabulary = values["model"]["vocab"]
    vocabulary[0], vocabulary[1] = vocabulary[1], vocabulary[0]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="not laid out as in XLM-R .<s> is 1, not 0; <pad> is 0, not 1"):
        copy_tokenizer(tmp_path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_tokenizer_with_ids_behind_the_mask_is_refused(tmp_path: Path, trained: Trained) -> None:
    values = json.loads((trained.folder / "tokenizer.json").read_text())
    mask = next(token for token in values["added_tokens"] if token["content"] == "<mask>")
    values["added_tokens"].append({**mask, "id": mask["id"] + 1, "content": "<extra>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"<mask> is {mask['id']}, not the last id {mask['id'] + 1}"):
        Tokenizer.open(tmp_path)


def test_a_copied_tokenizer_is_the_same_and_opens_in_transformers(tmp_path: Path, trained: Trained) -> None:
    source = tmp_path / "source"
    shutil.copytree(trained.folder, source)
    (source / "tokenizer_config.json").unlink()
    copy_tokenizer(source, tmp_path / "copy")
    assert Tokenizer.open(tmp_path / "copy").fingerprint == Tokenizer.open(source).fingerprint
    assert AutoTokenizer.from_pretrained(tmp_path / "copy")("a").input_ids[0] == 0


@pytest.mark.skipif(
    not os.environ.get("CALQUE_TEST_MODEL"),
    reason="set CALQUE_TEST_MODEL to the folder of an XLM-R or multilingual-e5 model to run this",
)
def test_an_existing_model_folder_gives_the_ids_of_auto_tokenizer(tmp_path: Path) -> None:
    folder = os.environ["CALQUE_TEST_MODEL"]
    copy_tokenizer(folder, tmp_path)
    ours, theirs = Tokenizer.open(tmp_path), AutoTokenizer.from_pretrained(folder)
    texts = [text for _, text in demo_sentences("parallel_test.jsonl.gz", 10)]
    assert [[0, *ids.tolist(), 2] for ids in ours.encode(texts)] == theirs(texts)["input_ids"]
    assert ours.mask_id == theirs.mask_token_id
