"""One corpus of a recipe: what its records are (kind), how its files are written (format), where the texts stand."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from data.cleaning.config import CleaningConfig
from data.recipe import Alternatives

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]

KINDS_OF_FORMAT = {
    "jsonl": ("parallel", "monolingual", "scored"),
    "tsv": ("parallel", "monolingual"),
    "text": ("parallel", "monolingual"),
    "tmx": ("parallel",),
    "po": ("parallel",),
    "huggingface": ("parallel", "monolingual", "scored"),
}


COMMON = ("kind", "format", "held_out", "cleaning")  # keys of every kind and format


class LanguageConfig(Alternatives):
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


class CorpusConfig(Alternatives):
    """One corpus: what its records are (kind), how the file is written (format) and where the texts stand."""

    kind: Literal["parallel", "monolingual", "scored"]
    format: Literal["jsonl", "tsv", "text", "tmx", "po", "huggingface"]
    path: Text | None = (
        None  # a file or a pattern (*.gz); huggingface: or the folder of a data set, or of Parquet
    )
    paths: dict[Name, Text] | None = (
        None  # language -> file or pattern. text: line by line translations; po: catalogs
    )
    source: Name | None = None  # po: the language of msgid
    document_characters: Annotated[int, Field(ge=1)] | None = (
        None  # text: the lines up to an empty one are one document, cut between lines where it gets longer than this
    )
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
    hub: Text | None = None  # huggingface: instead of path, a data set on the hub (owner/name), streamed
    revision: Commit | None = None  # of the hub's data set: its commit, so that every run reads the same
    subset: Text | None = None  # of the hub's data set, if it has several (the hub calls them configurations)
    split: Text | None = None  # huggingface: which split of several
    cleaning: CleaningConfig | None = None  # for this corpus alone; what it does not name is as for all
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
            if name not in COMMON and getattr(self, name) is not None
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
            return needed, (*needed, "document_characters")
        if self.format == "po":
            return ("paths", "source"), ("paths", "source")
        if self.format == "tmx":
            return ("path",), ("path", "languages")
        if self.format == "tsv":
            optional = ("language", "languages") if self.kind == "monolingual" else ()
            return ("path", "columns"), ("path", "columns", *optional)
        where: tuple[str, ...] = ("path",)
        place: tuple[str, ...] = ("path", "split") if self.format == "huggingface" else ("path",)
        if self.format == "huggingface" and self.hub is not None and self.path is None:
            where, place = ("hub", "revision"), ("hub", "revision", "subset", "split")
        needed, allowed = self._keys_of_rows()
        return (*where, *needed), (*place, *allowed)

    def _keys_of_rows(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The same for the fields of rows that name them."""
        if self.kind == "parallel":
            if self.fields is not None:
                return ("fields",), ("fields",)
            return ("translations",), ("translations", "languages")
        if self.kind == "monolingual":
            return ("text", "language"), ("text", "language", "languages")
        triplet = ("anchor", "positive", "negatives", "language")
        return triplet, (*triplet, "scores", "candidates_language", "languages")

    def _miscounts(self, what: str) -> list[str]:
        """Values that are fine alone and wrong together."""
        problems = []
        for key in ("paths", "fields"):
            languages = getattr(self, key)
            if languages is not None and len(languages) < (1 if self.format == "po" else 2):
                problems.append(f"'{key}' of {what} must name at least two languages")
        if self.format == "po" and self.source is not None and self.source in (self.paths or {}):
            problems.append(f"'paths' of {what} holds its source language, {self.source}: leave it out there")
        if (
            self.held_out
            and self.cleaning is not None
            and {self.cleaning.duplicates, self.cleaning.held_out} - {None, "off"}
        ):
            problems.append("'duplicates' and 'held_out' of 'cleaning' are for corpora that are trained on")
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
        """The paths of this corpus as the recipe writes them, patterns among them; none for a data set on the hub."""
        if self.paths is not None:
            return tuple(self.paths.values())
        return () if self.path is None else (self.path,)
