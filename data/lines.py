"""Files -> lines, as bytes split on b"\n" alone, compression seen through, giant lines and bad UTF-8 marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from data.compression import DAMAGE, decompressed
from data.recipe import UserError

LONGEST_LINE = 1 << 24  # bytes; the rest of a longer line is skipped, so that memory stays bounded
Advance = Callable[[int], None]  # told the bytes read from disk, for a progress bar


@contextmanager
def opened(path: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """(the file as it is on disk, its content); UserError if it can not be opened."""
    try:
        raw = open(path, "rb")
    except OSError as error:
        raise UserError(
            f"{path}: can not be opened: {error.strerror or error}; check the path and who may read it"
        ) from None
    with raw:
        try:
            content = decompressed(raw)
        except DAMAGE as error:
            raise damaged(path, "line 0", error) from None
        yield raw, content


def damaged(path: str, where: str, error: Exception | str) -> UserError:
    """The message about a file that can not be read to its end; ``where``: the last place that could."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path}: damaged after {where}: {said}; fetch or write it again")


def read_lines(path: str, advance: Advance = lambda count: None) -> Iterator[tuple[int, bytes | None]]:
    """(where it begins, the line without b"\\n" and one b"\\r" before) of every line; None is a giant line.

    Places are bytes from the beginning of the file; of a compressed one, of what was compressed.
    """
    with opened(path) as (raw, file):
        seen = number = end = 0
        try:
            while line := file.readline(LONGEST_LINE):
                number += 1
                start, end = end, end + len(line)
                if number == 1:
                    line = _without_mark(line, path)
                rest = (
                    b"" if len(line) < LONGEST_LINE or line.endswith(b"\n") else file.readline(LONGEST_LINE)
                )
                giant = bool(rest)
                end += len(rest)
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE)
                    end += len(rest)
                if number % 1024 == 0:
                    advance(raw.tell() - seen)
                    seen = raw.tell()
                yield start, None if giant else line.removesuffix(b"\n").removesuffix(b"\r")
        except DAMAGE as error:
            raise damaged(path, f"line {number}", error) from None
        advance(raw.tell() - seen)


def _without_mark(line: bytes, path: str) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: this is UTF-16; convert it (iconv -f UTF-16 -t UTF-8)")
    return line.removeprefix(b"\xef\xbb\xbf")


def decoded_lines(path: str, advance: Advance) -> Iterator[tuple[int, int, str, str]]:
    """(line number from 1, byte where it begins, text, reason for a reject or "") of every line."""
    for number, (start, line) in enumerate(read_lines(path, advance), start=1):
        if line is None:
            yield number, start, "", "too_long"
            continue
        try:
            yield number, start, line.decode("utf-8"), ""
        except UnicodeDecodeError:
            yield number, start, "", "invalid_utf8"
