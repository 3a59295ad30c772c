"""Text <-> ids: a tokenizer folder in Hugging Face's form, opened or copied. data/tokenizer_training.py makes one.

Ids are laid out as in XLM-R (Conneau et al. 2020): <s> 0, <pad> 1, </s> 2, <unk> 3, the pieces, <mask> last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from data.recipe import UserError

# Work is shared out over processes; the library's own threads warn or dead-lock in processes that fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3
MASK = "<mask>"
FILES = ("tokenizer.json", "tokenizer_config.json")


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
        write_settings(folder)


def write_settings(folder: Path) -> None:
    """Writes tokenizer_config.json: the classes and special tokens that transformers is to use."""
    settings = {
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
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    (folder / FILES[1]).write_text(text + "\n", encoding="utf-8")


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
