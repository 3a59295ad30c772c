"""Reading corpora as the recipe wants them cleaned.

What a record alone decides (its Unicode form, lengths) is done whenever it is read. What takes a comparison was found
beforehand (examination.py) and is read beside the corpora: a byte a text, a byte a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.cleaning.config import effective
from data.cleaning.language import identifier
from data.cleaning.signatures import library
from data.cleaning.texts import language_of, tidied, without
from data.config import DataConfig
from data.recipe import UserError
from data.records import segments
from data.sources import Advance, Item, Reject, read_corpus

REASONS_BY_NUMBER = ("", "wrong_language", "held_out_text", "near_held_out", "duplicate", "near_duplicate")
NUMBERS = {reason: number for number, reason in enumerate(REASONS_BY_NUMBER)}


class Sieve:
    """The corpora of a recipe, cleaned; ``folder`` holds what was found beforehand, for those that asked for it."""

    def __init__(self, config: DataConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self.rules = {
            name: effective(config.cleaning, corpus.cleaning, corpus.held_out)
            for name, corpus in config.corpora.items()
        }
        self.examined = tuple(
            name for name, rules in self.rules.items() if rules.language or rules.duplicates or rules.held_out
        )
        self.compared = {
            rules.held_out for rules in self.rules.values() if rules.held_out
        }  # with what is held out

    def read(self, name: str, advance: Advance = lambda count: None) -> Iterator[Item]:
        """The records of a corpus that are kept, and what is not in its place."""
        if name not in self.examined:
            yield from self.tidied(name, advance)
            return
        with (
            (self._folder / "texts" / name).open("rb") as texts,
            (self._folder / "records" / name).open("rb") as records,
        ):
            for item in self.tidied(name, advance):
                if isinstance(item, Reject):
                    yield item
                    continue
                where, record = item
                size = len(segments(record))
                marks, mark = texts.read(size), records.read(1)
                if len(marks) < size or not mark:
                    raise UserError(f"{where.file}: has changed while it was read; start again")
                if mark[0]:
                    yield Reject(where, REASONS_BY_NUMBER[mark[0]], language_of(record))
                else:
                    yield from without(where, record, [REASONS_BY_NUMBER[each] for each in marks])

    def tidied(self, name: str, advance: Advance = lambda count: None) -> Iterator[Item]:
        """The records of a corpus before they are compared with others."""
        items = read_corpus(self._config.corpora[name], self._config.maximum_characters, advance)
        return tidied(items, self.rules[name])


def check_packages(config: DataConfig) -> None:
    """UserError if the recipe asks for what an optional package does that is not installed."""
    for rules in Sieve(config, Path()).rules.values():
        if rules.language:
            identifier()
        if "near" in (rules.duplicates, rules.held_out):
            library()
