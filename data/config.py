"""The data sections of a recipe: corpora, lexicons, tokenizer and token store."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from data.recipe import Section

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Text = Annotated[str, StringConstraints(min_length=1)]

KINDS_OF_FORMAT = {
    "jsonl": ("parallel", "monolingual", "scored"),
    "tsv": ("parallel", "monolingual"),
    "text": ("parallel", "monolingual"),
    "huggingface": ("parallel", "monolingual", "scored"),
}


class _Alternatives(Section):
    """Keys of which only some apply: those that do not are left out when the settings are written down."""

    @model_serializer(mode="wrap")
    def _without_the_rest(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class LanguageConfig(_Alternatives):
    """The language of a monolingual or scored corpus: one code for all of it, or the field that holds it.

    `language: de` is short for `language: {code: de}`.
    """

    code: Name | None = None
    field: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_string_is_a_code(cls, value: Any) -> Any:
        return {"code": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> LanguageConfig:
        if (self.code is None) == (self.field is None):
            raise ValueError("give either a language (language: de) or its field (language: {field: lang})")
        return self


class CorpusConfig(_Alternatives):
    """One corpus: what its records are (kind), how the file is written (format) and where the texts stand."""

    kind: Literal["parallel", "monolingual", "scored"]
    format: Literal["jsonl", "tsv", "text", "huggingface"]
    path: Text | None = None  # a file; huggingface: or the folder of a data set, or of Parquet files
    paths: dict[Name, Text] | None = None  # text, parallel: language -> file, line by line translations
    translations: Text | None = None  # parallel: the field that holds {language: text}
    fields: dict[Name, Text] | None = None  # parallel: language -> field
    columns: tuple[Name | Literal["_"], ...] | None = None  # tsv: languages, or text and language
    text: Text | None = None  # monolingual: the field of the text
    language: LanguageConfig | None = None  # monolingual and scored (there: of the anchor)
    candidates_language: LanguageConfig | None = (
        None  # scored: of positive and negatives, where it is another one
    )
    anchor: Text | None = None  # scored: fields of a triplet
    positive: Text | None = None
    negatives: Text | None = None
    scores: Text | None = None  # left out: a teacher gives them (tasks.adaptive_margin.teacher)
    languages: tuple[Name, ...] | None = None  # of rows that say their own: only these are read
    split: Text | None = None  # huggingface: which split of a folder with several
    held_out: bool = False  # prepared, but never trained on and never seen by the tokenizer

    @model_validator(mode="after")
    def _keys_fit_kind_and_format(self) -> CorpusConfig:
        problems = self._misfits()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _misfits(self) -> list[str]:
        what = f"a {self.kind} corpus in {self.format} format"
        if self.kind not in KINDS_OF_FORMAT[self.format]:
            formats = [name for name, kinds in KINDS_OF_FORMAT.items() if self.kind in kinds]
            return [f"{what} can not be read; {self.kind} corpora come as {' or '.join(formats)}"]
        needed, allowed = self._keys()
        given = {
            name for name in type(self).model_fields
            if name not in ("kind", "format", "held_out") and getattr(self, name) is not None
        }  # fmt: skip
        problems = [f"{what} needs the key '{key}'" for key in needed if key not in given]
        problems += [
            f"the key '{key}' does not belong to {what} (it takes {', '.join(allowed)})"
            for key in type(self).model_fields
            if key in given and key not in allowed
        ]
        return problems + self._miscounts(what)

    def _keys(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Keys that this kind and format must have, and those that it may have."""
        if self.format == "text":
            needed: tuple[str, ...] = ("paths",) if self.kind == "parallel" else ("path", "language")
            return needed, needed
        if self.format == "tsv":
            optional = ("language", "languages") if self.kind == "monolingual" else ()
            return ("path", "columns"), ("path", "columns", *optional)
        place = ("path", "split") if self.format == "huggingface" else ("path",)
        if self.kind == "parallel":
            if self.fields is not None:
                return ("path", "fields"), (*place, "fields")
            return ("path", "translations"), (*place, "translations", "languages")
        if self.kind == "monolingual":
            return ("path", "text", "language"), (*place, "text", "language", "languages")
        triplet = ("anchor", "positive", "negatives", "language")
        return ("path", *triplet), (*place, *triplet, "scores", "candidates_language", "languages")

    def _miscounts(self, what: str) -> list[str]:
        """Values that are fine alone and wrong together."""
        problems = []
        for key in ("paths", "fields"):
            languages = getattr(self, key)
            if languages is not None and len(languages) < 2:
                problems.append(f"'{key}' of {what} must name at least two languages")
        if self.languages is not None:
            if len(self.languages) < (2 if self.kind == "parallel" else 1):
                problems.append(f"'languages' leaves nothing of {what}: name more of them")
            if self.language is not None and self.language.code is not None:
                problems.append("'languages' chooses among those of the rows; this corpus has one (language)")
        if self.format == "text" and self.language is not None and self.language.field is not None:
            problems.append("a plain text file has no fields: give the language itself (language: de)")
        if self.format == "tsv" and self.columns is not None:
            named = [column for column in self.columns if column != "_"]
            if len(set(named)) < len(named):
                problems.append("'columns' names a column twice")
            if self.kind == "parallel" and len(named) < 2:
                problems.append(f"'columns' of {what} must name at least two languages")
            if self.kind == "monolingual":
                problems += self._misnamed_columns(named)
        return problems

    def _misnamed_columns(self, named: list[str]) -> list[str]:
        if "text" not in named or set(named) - {"text", "language"}:
            return ["'columns' of a monolingual tsv corpus are text, language (if a column holds it) and _"]
        if ("language" in named) == (self.language is not None):
            return ["give the language either as a column named language or with the key 'language'"]
        if self.language is not None and self.language.code is None:
            return ["a tsv file has no field names: name the column 'language' in 'columns'"]
        return []

    def files(self) -> tuple[str, ...]:
        """The paths that this corpus reads."""
        return tuple(self.paths.values()) if self.paths is not None else (self.path or "",)


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


class TokenizerConfig(_Alternatives):
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
    lexicons: tuple[LexiconConfig, ...] = ()
    tokenizer: TokenizerConfig
    maximum_tokens: int = Field(512, ge=8)  # longest text in ids, <s> and </s> included; the rest is cut off
    maximum_characters: int = Field(10_000, ge=1)  # longer texts are rejected, not cut
