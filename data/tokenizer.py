"""Text <-> ids: opening a tokenizer folder, and training one with sentencepiece (the door of sentencepiece).

Ids are laid out as in XLM-R (Conneau et al. 2020): <s> 0, <pad> 1, </s> 2, <unk> 3, the pieces, <mask> last.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from data.config import TrainTokenizerConfig
from data.recipe import UserError

# Work is shared out over processes; the library's own threads warn or dead-lock in processes that fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3
MASK = "<mask>"
FILES = ("tokenizer.json", "tokenizer_config.json")
# The number of threads decides the order of sentencepiece's sums, and with it the pieces: a constant.
TRAINING_THREADS = 4


class Tokenizer:
    """Text to ids and back for one tokenizer folder in Hugging Face's form; needs no transformers."""

    bos_id, pad_id, eos_id, unk_id = range(4)

    def __init__(self, folder: str | Path) -> None:
        """Opens folder/tokenizer.json; UserError if it is not one or its special ids are not XLM-R's."""
        self.folder = Path(folder)
        text = _read_tokenizer_json(self.folder)
        self.fingerprint = hashlib.sha256(text).hexdigest()
        try:
            ids, plain = _read(text)
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain, ensure_ascii=False))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{self.folder}/tokenizer.json: not a tokenizer: {error}") from None
        self.vocabulary_size = max(ids.values()) + 1
        self.mask_id = self._checked_layout(ids)
        # Whether a text's ids are those of what stands between its spaces, one after the other.
        self.cuts_at_spaces = _cuts_at_spaces(plain)

    @classmethod
    def open(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer in `folder`."""
        return cls(folder)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Path]]:
        return Tokenizer, (self.folder,)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """<s>, <pad>, </s>, <unk>, <mask>."""
        return (self.bos_id, self.pad_id, self.eos_id, self.unk_id, self.mask_id)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, without special tokens around it."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, dtype=np.int32) for each in encoded]

    def covered(self, text: str, count: int) -> str:
        """The beginning of ``text`` that its first ``count`` ids stand for; all of it if it has no more."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return text if len(offsets) <= count else text[: offsets[count - 1][1]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens are written out, a space before each."""
        return self._tokenizer.decode([int(each) for each in ids], skip_special_tokens=False).strip()

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece behind each id, with the word mark (U+2581)."""
        return [(self._tokenizer.id_to_token(int(each)) or "").strip() for each in ids]

    def _checked_layout(self, ids: dict[str, int]) -> int:
        """The id of <mask>."""
        wrong = [
            f"{name} is {ids.get(name)}, not {i}" for i, name in enumerate(SPECIALS) if ids.get(name) != i
        ]
        mask = ids.get(MASK)
        if mask is None:
            wrong.append(f"{MASK} is missing")
        elif mask != self.vocabulary_size - 1:
            wrong.append(f"{MASK} is {mask}, not the last id {self.vocabulary_size - 1}")
        if wrong or mask is None:
            raise UserError(
                f"{self.folder}: the special ids are not laid out as in XLM-R ({'; '.join(wrong)}); use an "
                "XLM-R or multilingual-e5 tokenizer, or let the recipe train one (tokenizer: {train: {}})"
            )
        return mask


def copy_tokenizer(source: str | Path, folder: Path) -> None:
    """Copies an existing tokenizer folder's files; UserError if Tokenizer could not open it."""
    Tokenizer(source)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, "special_tokens_map.json"):
        if (Path(source) / name).is_file():
            (folder / name).write_bytes((Path(source) / name).read_bytes())
    if not (folder / FILES[1]).is_file():
        _write_json(folder / FILES[1], _tokenizer_config())


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
    _write_json(folder / FILES[1], _tokenizer_config())


# ---- training -------------------------------------------------------------------------------------------


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


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- opening --------------------------------------------------------------------------------------------


def _read_tokenizer_json(folder: Path) -> bytes:
    try:
        return (folder / FILES[0]).read_bytes()
    except OSError:
        pass
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such tokenizer folder")
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
    raise UserError(
        f"{folder}: no tokenizer folder, it has no tokenizer.json (it holds {held}); write one with "
        f"transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(...)"
    )


def _read(text: bytes) -> tuple[dict[str, int], dict[str, Any]]:
    """The ids of all tokens of a tokenizer.json, and the same for encoding plain text.

    The library is asked once: a tokenizer of 250,000 pieces takes hundreds of megabytes.
    """
    values = json.loads(text)
    vocabulary = values["model"]["vocab"]
    ids = (
        dict(vocabulary)
        if isinstance(vocabulary, dict)
        else {token: i for i, (token, _) in enumerate(vocabulary)}
    )
    ids |= {token["content"]: token["id"] for token in values["added_tokens"]}
    return ids, _without_specials(values)


def _without_specials(values: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json for encoding plain text: "</s>" in a text is four characters, not the end of it.

    Special tokens keep their ids and get a space in front: no text is cut into pieces that hold a space.
    """
    special = [token for token in values["added_tokens"] if token["special"]]
    if values["model"].get("type") == "Unigram":
        vocabulary = values["model"]["vocab"]
        for token in sorted(special, key=lambda token: token["id"]):
            if token["id"] == len(vocabulary):
                vocabulary.append([token["content"], 0.0])
            vocabulary[token["id"]][0] = " " + token["content"]
        values["added_tokens"] = [token for token in values["added_tokens"] if not token["special"]]
    return {**values, "truncation": None, "padding": None, "post_processor": None}


def _cuts_at_spaces(values: dict[str, Any]) -> bool:
    """Whether spaces are all that is seen beyond a word: known of XLM-R's and of our own normaliser and first cut."""
    if values["model"].get("type") != "Unigram" or values["added_tokens"]:
        return False
    normalizer, cut = values["normalizer"] or {}, values["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    patterns = [step.get("pattern", {}).get("Regex") for step in steps if step.get("type") == "Replace"]
    if any(step.get("type") not in ("Precompiled", "Replace") for step in steps):
        return False
    cuts = [each.get("type") for each in cut.get("pretokenizers", [cut])]
    if cuts == ["WhitespaceSplit", "Metaspace"]:
        return set(patterns) <= {" {2,}", "^ | $"}
    return cuts == ["Metaspace"] and cut.get("split", True) and set(patterns) == {" {2,}", "^ | $"}
