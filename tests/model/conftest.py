"""A small encoder, real sentences and a tokenizer folder for the tests of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from model.config import EncoderConfig
from model.pretraining import PretrainingModel

# From the Universal Declaration of Human Rights.
SENTENCES = (
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft begabt.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "人人生而自由，在尊严和权利上一律平等。",
    "Wszyscy ludzie rodzą się wolni",
    "No one shall be held in slavery or servitude; the slave trade shall be prohibited in all its forms.",
    "Oui.",
)


def make_config(**changes: float) -> EncoderConfig:
    values = dict(vocabulary_size=101, layers=3, width=32, heads=4, feed_forward=48, positions=66)
    return EncoderConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def small() -> Callable[..., PretrainingModel]:
    """Builds a small model whose every parameter, norms and biases too, is far from its initial value."""

    def build(dtype: torch.dtype = torch.float64, **changes: float) -> PretrainingModel:
        model = PretrainingModel(make_config(**changes), seed=3)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "temperature" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
        return model.to(dtype)

    return build


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of single characters in XLM-R's layout, in Hugging Face's form."""
    folder = tmp_path_factory.mktemp("tokenizer")
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(set("▁" + "".join(SENTENCES)) - {" "})
    pieces = (
        [(special, 0.0) for special in specials] + [(letter, -3.0) for letter in letters] + [("<mask>", 0.0)]
    )
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([*specials, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos": "<s>",
        "cls": "<s>",
        "pad": "<pad>",
        "eos": "</s>",
        "sep": "</s>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    settings = {f"{name}_token": token for name, token in names.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
