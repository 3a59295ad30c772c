"""Compressed files seen through: gzip, bzip2, xz and Zstandard, told by their first bytes, never by their name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from typing import BinaryIO, cast

# What the readers below raise on a torn or damaged file; Arrow's reader of Zstandard an OSError.
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)
LONGEST_SIGNATURE = 10
_BUFFER = 1 << 16
_BZIP2 = re.compile(
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"
)  # full or empty; three letters alone could begin a text


def decompressed(raw: io.BufferedReader) -> BinaryIO:
    """The content of an open file: itself, or what was compressed into it."""
    head = raw.peek(LONGEST_SIGNATURE)[:LONGEST_SIGNATURE]
    if head.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if head.startswith(b"\xfd7zXZ\x00"):
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if _BZIP2.match(head):
        return cast(BinaryIO, bz2.BZ2File(raw))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow as pa  # here: few files are of this kind, and every command would wait for it

        packed = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
        return io.BufferedReader(packed, _BUFFER)
    return raw
