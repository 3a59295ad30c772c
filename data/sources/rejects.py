"""What is read and not kept, where it stands, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from data.records import Record

REASONS = {
    "invalid_utf8": "the line is not UTF-8",
    "empty": "there is no text, or nothing is left of it after normalisation",
    "too_long": "more characters than maximum_characters",
    "wrong_columns": "the line does not have the columns that the recipe names",
    "bad_json": "the line is not a JSON object",
    "missing_field": "the row lacks a field that the recipe names",
    "unknown_kind_of_value": "the value is no text (or no list of texts, no number) where one is expected",
    "bad_language": "the value is no language code",
    "left_out_language": "the recipe reads other languages of this corpus",
    "repeated_language": "a second text of the same language in one translation unit",
    "fewer_than_two_languages": "a translation needs texts in two languages",
    "fuzzy": "the translation is marked as not checked by its translator",
    "length_ratio": "too long or too short beside its translations (cleaning)",
    "wrong_language": "in another language than it is said to be (cleaning)",
    "held_out_text": "also stands in a held-out corpus (cleaning)",
    "near_held_out": "nearly the same stands in a held-out corpus (cleaning)",
    "duplicate": "the same record came before (cleaning)",
    "near_duplicate": "nearly the same record came before (cleaning)",
    "wrong_scores": "not one score for the positive and one for each negative",
}


class Where(NamedTuple):
    """A place in a corpus; places sort in the order in which they are read."""

    part: int  # number of the file, where a corpus has several one after another
    line: int  # counted from 1; in a table the row
    file: str  # of files that are read side by side the one that is meant
    byte: int = (
        -1
    )  # where it begins; of a compressed file in its content; -1 in a table, whose rows have no place


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that was read and not kept: a whole record, or one text of a record that is kept."""

    where: Where
    reason: str  # a key of REASONS
    language: str = ""  # where it is known
    whole_record: bool = True

    @property
    def file(self) -> str:
        """The file that holds it."""
        return self.where.file

    @property
    def line(self) -> int:
        """Its line there, counted from 1."""
        return self.where.line


Item = tuple[Where, Record] | Reject  # a kept record comes with its place
