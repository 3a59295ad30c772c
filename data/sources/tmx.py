"""TMX: translation memories as XML, a record a translation unit, read as a stream by expat.

Any encoding that XML knows. A document type is allowed and never fetched; entity declarations, by which a small file
could grow without bound or read another, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.parsers import expat

from data.compression import DAMAGE
from data.config import CorpusConfig
from data.lines import Advance, damaged, opened
from data.recipe import UserError
from data.sources.judge import Bad, Row
from data.sources.places import parts_of
from data.sources.rejects import Where

BYTES_AT_A_TIME = 1 << 16
LONGEST_TAG = 1 << 21
LONGEST_TEXT = 1 << 22  # characters of a text that are held; what is longer is rejected anyhow
NATIVE_CODE = ("bpt", "ept", "it", "ph", "ut", "sub")  # markup of the translated file, no text
MARK = "\ufeff"


def tmx_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[Where, Row]]:
    """The (language, text) of every translation unit, located by where it begins."""
    for part, path in enumerate(parts_of(config.path or "")):
        units = _Units(config)
        with opened(path) as (raw, file):
            seen = read = 0
            try:
                while block := file.read(BYTES_AT_A_TIME):
                    units.parser.Parse(block)
                    read += len(block)
                    if (
                        read - units.parser.CurrentByteIndex > LONGEST_TAG
                    ):  # expat begins such a one again with each block
                        raise UserError(
                            f"{path}: line {units.parser.CurrentLineNumber} holds a tag without an end; mend it"
                        )
                    advance(raw.tell() - seen)
                    seen = raw.tell()
                    for line, start, row in units.taken():
                        yield Where(part, line, path, start), row
                units.parser.Parse(b"", True)
            except expat.ExpatError as error:
                raise UserError(
                    f"{path}: not XML from line {error.lineno} on: {expat.ErrorString(error.code)}; mend it (xmllint "
                    "--recover) or export it again"
                ) from None
            except _Entity as error:
                raise UserError(
                    f"{path}: line {error} declares an entity, which is not read; remove it"
                ) from None
            except DAMAGE as error:
                raise damaged(path, f"line {units.parser.CurrentLineNumber}", error) from None
            except (LookupError, ValueError) as error:  # an encoding that nobody knows
                raise UserError(f"{path}: {error}; convert it to UTF-8") from None
        for line, start, row in units.taken():
            yield Where(part, line, path, start), row


class _Entity(Exception):
    """An entity declaration, with its line."""


class _Units:
    """Handlers of the parser: collects the units that are complete."""

    def __init__(self, config: CorpusConfig) -> None:
        self.wanted = {code.lower(): code for code in config.languages or ()}
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.EntityDeclHandler = self._entity
        self._done: list[tuple[int, int, Row]] = []  # line and byte, (language, text)
        self._begin = (1, 0)
        self._unit: list[tuple[str, Any]] = []
        self._language = ""
        self._segment: list[str] | None = None
        self._held = self._code = 0

    def taken(self) -> list[tuple[int, int, Row]]:
        """The units since the last call."""
        done, self._done = self._done, []
        return done

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "tu":
            self._unit = []
            self._begin = (self.parser.CurrentLineNumber, self.parser.CurrentByteIndex)
        elif name == "tuv":
            self._language = self._known(attributes.get("xml:lang", attributes.get("lang", "")))
        elif name == "seg":
            self._segment, self._held, self._code = [], 0, 0
        elif name in NATIVE_CODE:
            self._code += 1

    def _end(self, name: str) -> None:
        if name in NATIVE_CODE:
            self._code -= 1
        elif name == "seg" and self._segment is not None:
            text: Any = (
                " ".join("".join(self._segment).split()) if self._held <= LONGEST_TEXT else Bad("too_long")
            )
            if any(language == self._language for language, _ in self._unit):
                text = Bad("repeated_language")
            if self._language or not self.wanted:
                self._unit.append((self._language, text))
            self._segment = None
        elif name == "tu":
            self._done.append((*self._begin, self._unit))

    def _text(self, text: str) -> None:
        if self._segment is not None and not self._code:
            self._held += len(text)
            if self._held <= LONGEST_TEXT:
                self._segment.append(text.replace(MARK, ""))

    def _entity(self, *_: Any) -> None:
        raise _Entity(self.parser.CurrentLineNumber)

    def _known(self, tag: str) -> str:
        """The language of a tag: as the recipe writes it ("" if it reads others), else in its usual form, de-CH."""
        tag = tag.replace("_", "-").lower()
        if self.wanted:
            return self.wanted.get(tag, self.wanted.get(tag.split("-")[0], ""))
        first, *others = tag.split("-")
        return "-".join([first, *(each.upper() if len(each) == 2 else each.title() for each in others)])
