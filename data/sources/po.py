"""gettext PO: catalogs of interface texts, a pair of translations an entry (the door of polib)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.config import CorpusConfig
from data.lines import Advance, read_lines
from data.recipe import UserError
from data.sources.judge import Row
from data.sources.places import parts_of
from data.sources.rejects import Where

# A line of a catalog: a comment, or a string that is closed. polib would take the first and last letter of any other.
LINE = re.compile(rb"\s*(#(?!~)|#~\||((#~)?\s*((msg(ctxt|id|id_plural|str|str\[\d+\])\s*)?\".*\"\s*)?$))")


def po_rows(config: CorpusConfig, advance: Advance) -> Iterator[tuple[Where, Row]]:
    """The (language, text) of every entry, catalog after catalog, located by the line where it begins.

    Of an entry with plural forms the plural is read: the last of them says "other" in every language.
    """
    part = 0
    for language, named in (config.paths or {}).items():
        for path in parts_of(named):
            for start, entry in _entries(path, advance):
                where = Where(part, max(entry.linenum, 1), path, start)
                translation = entry.msgstr
                if entry.msgstr_plural:
                    translation = entry.msgstr_plural[max(entry.msgstr_plural)]
                if "fuzzy" in entry.flags:
                    yield where, "fuzzy"
                else:
                    yield (
                        where,
                        [(config.source or "", entry.msgid_plural or entry.msgid), (language, translation)],
                    )
            part += 1


def _entries(path: str, advance: Advance) -> Iterator[tuple[int, Any]]:
    """(byte where it begins, entry) of every entry.

    A catalog is read whole, small as it is by its nature, after its lines went through ours (compression, CR).
    """
    try:
        import polib
    except ImportError:
        raise UserError(f"{path}: reading PO needs the package polib: pip install polib") from None
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.po"
        starts = []
        with plain.open("wb") as file:
            for number, (start, line) in enumerate(read_lines(path, advance), start=1):
                starts.append(start)
                if line is None or not LINE.match(line):
                    raise UserError(
                        f"{path}: line {number} is no line of a PO file; msgfmt --check says more"
                    )
                file.write(
                    line.replace(b"\r", b"\\r") + b"\n"
                )  # polib would take a lone one for the end of a line
        try:
            for entry in polib.pofile(str(plain), encoding="utf-8"):
                yield starts[max(entry.linenum, 1) - 1], entry
        except UnicodeDecodeError:
            raise UserError(f"{path}: this is not UTF-8; convert it (msgconv -t UTF-8)") from None
        except (OSError, ValueError, IndexError, KeyError) as error:
            said = str(error).replace(f"{plain} ", "")
            raise UserError(f"{path}: {said}; msgfmt --check says more") from None
