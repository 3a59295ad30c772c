"""The data sections of a recipe: corpora, lexicons, tokenizer and token store."""

from __future__ import annotations

from pydantic import Field, model_validator

from data.cleaning.config import CleaningConfig
from data.corpus import CorpusConfig, Name, Text
from data.recipe import Alternatives, Section


class LexiconConfig(Section):
    """A word list as TSV: language, English, translation and, if wanted, where it came from."""

    path: Text


class TrainTokenizerConfig(Section):
    """A sentencepiece unigram model trained on the corpora that are not held out."""

    vocabulary_size: int = Field(16384, ge=64, le=1_000_000)  # ids in all, the five special ones included
    soft_limit: bool = False  # fewer ids where the corpora do not hold as many pieces, instead of an error
    temperature: float = Field(0.3, ge=0.0, le=1.0)  # languages are sampled by characters ** temperature
    seed: int = Field(1, ge=0, lt=2**63)
    maximum_sentences: int = Field(1_000_000, ge=1)  # sentences that sentencepiece sees, over all languages
    character_coverage: float = Field(0.9995, gt=0.9, le=1.0)


class TokenizerConfig(Alternatives):
    """Either train a tokenizer, or use the one of a Hugging Face model folder (XLM-R special ids)."""

    train: TrainTokenizerConfig | None = None
    path: Text | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizerConfig:
        if (self.train is None) == (self.path is None):
            raise ValueError("give either 'train' (train a tokenizer) or 'path' (use an existing one)")
        return self


class DataConfig(Section):
    """What becomes one token store. The keys stand at the top of a recipe, beside the training sections."""

    store: Text  # folder of the token store
    corpora: dict[Name, CorpusConfig] = Field(min_length=1)
    cleaning: CleaningConfig | None = None
    lexicons: tuple[LexiconConfig, ...] = ()
    tokenizer: TokenizerConfig
    maximum_tokens: int = Field(512, ge=8)  # longest text in ids, <s> and </s> included; the rest is cut off
    maximum_characters: int = Field(10_000, ge=1)  # longer texts are rejected, not cut
