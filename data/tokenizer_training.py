"""Training a tokenizer with sentencepiece, of which this is the door, and writing it as a Hugging Face folder."""

from __future__ import annotations

import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from data.config import TrainTokenizerConfig
from data.recipe import UserError
from data.tokenizer import FILES, MASK, SPECIALS, write_settings

# The number of threads decides the order of sentencepiece's sums, and with it the pieces: a constant.
TRAINING_THREADS = 4


def train_tokenizer(
    sentences: Callable[[], Iterable[tuple[str, str]]], config: TrainTokenizerConfig, folder: Path
) -> None:
    """Trains a unigram model on (language, text) pairs, which are read twice, and writes a tokenizer folder.

    Languages are weighted so that each holds characters ** temperature of the training text (the temperature
    sampling of XLM-R). Text is normalised by nmt_nfkc as in XLM-R. Digits are pieces of their own, unlike in
    XLM-R: numbers then look the same in every language and take no room in a small vocabulary.
    """
    import sentencepiece  # here: worker processes open tokenizers and train none

    model = io.BytesIO()
    lines = _weighted_sentences(sentences, config)
    first = next(lines, None)
    if first is None:
        raise UserError("the tokenizer has no text to train on: every corpus is empty or held out")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chained(first, lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=config.vocabulary_size
            - len(SPECIALS),  # <unk> stands for four of ours, <mask> for none
            character_coverage=config.character_coverage,
            normalization_rule_name="nmt_nfkc",
            split_digits=True,
            byte_fallback=False,
            input_format="tsv",  # text, weight
            max_sentence_length=1 << 20,
            num_threads=TRAINING_THREADS,
            shrinking_factor=0.6,  # a third fewer rounds than 0.75
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            hard_vocab_limit=not config.soft_limit,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_training_remedy(str(error), config)) from None
    write_tokenizer(model.getvalue(), folder)


def learn_pieces(texts: Iterable[str], size: int = 8000) -> Callable[[str], list[str]]:
    """A unigram model of one language's texts, for cutting them into word-like pieces; joined they are the text."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            input_sentence_size=1_000_000,
            shuffle_input_sentence=False,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"sentencepiece could not learn the pieces of a language: {error}") from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return lambda text: processor.encode(text, out_type=str)


def write_tokenizer(model: bytes, folder: Path) -> None:
    """Writes a sentencepiece unigram model (its first piece is <unk>) as a Hugging Face tokenizer folder."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [
        (processor.id_to_piece(i), processor.get_score(i)) for i in range(1, processor.get_piece_size())
    ]
    vocabulary = [(token, 0.0) for token in SPECIALS] + pieces + [(MASK, 0.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(_character_map(model)),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
            normalizers.Replace(tokenizers.Regex("^ | $"), ""),  # Strip would take U+0085 too
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIALS]
        + [tokenizers.AddedToken(MASK, special=True, normalized=False, lstrip=True)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILES[0]).write_text(tokenizer.to_str(), encoding="utf-8")
    write_settings(folder)


def _weighted_sentences(
    sentences: Callable[[], Iterable[tuple[str, str]]], config: TrainTokenizerConfig
) -> Iterator[str]:
    """Lines "text TAB weight": at most about maximum_sentences, the same for every run with one seed."""
    characters: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for language, text in sentences():
        characters[language] += len(text)
        counts[language] += 1
    shares = {language: float(total) ** config.temperature for language, total in characters.items()}
    whole = sum(shares.values())
    chosen = {
        language: min(count, 1 + int(config.maximum_sentences * shares[language] / whole))
        for language, count in counts.items()
    }
    # weight of one character, had every language as many sentences as are chosen
    weights = {
        language: shares[language] / (characters[language] * chosen[language] / count)
        for language, count in counts.items()
    }
    lightest = min(weights.values(), default=1.0)
    draws = {language: random.Random(f"{config.seed} {language}") for language in counts}
    for language, text in sentences():
        draw = draws[language]
        if draw.random() * counts[language] < chosen[language]:
            chosen[language] -= 1
            weight = int(weights[language] / lightest + draw.random())  # rounded at random: exact on average
            yield f"{' '.join(text.split())}\t{weight}"
        counts[language] -= 1


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _training_remedy(message: str, config: TrainTokenizerConfig) -> str:
    size = f"tokenizer.train.vocabulary_size = {config.vocabulary_size}"
    largest = re.search(r"value <= (\d+)", message)
    if largest:
        return (
            f"{size}: the corpora yield too few pieces; set it to {int(largest[1]) + len(SPECIALS)} or less, or take "
            "what they yield (tokenizer.train.soft_limit: true)"
        )
    smallest = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if smallest:
        return (
            f"{size}: the corpora have {smallest[1]} different characters; set it well above that, or lower "
            f"tokenizer.train.character_coverage (now {config.character_coverage})"
        )
    return f"sentencepiece could not train a tokenizer: {message}"


def _character_map(model: bytes) -> bytes:
    """normalizer_spec.precompiled_charsmap of a sentencepiece model."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return bytes(proto.normalizer_spec.precompiled_charsmap)
