"""Bytes of a text file to text, and text to lines."""

from __future__ import annotations

import codecs
import re

from clipkit.errors import ClipkitError

_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(data: bytes, encoding: str | None, errors: str = "strict") -> str:
    """``data`` in ``encoding``; if None in UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ClipkitError: there is no such encoding.
        UnicodeDecodeError: ``data`` are no such text.
    """
    if encoding is None:
        encoding = "utf-16" if data.startswith(_MARKS) else "utf-8-sig"
    try:
        return data.decode(encoding, errors)
    except LookupError:
        raise ClipkitError(f"{encoding}: no such text encoding; try utf-8 or latin-1") from None


def unmarked_utf16(data: bytes) -> str | None:
    """The encoding of UTF-16 without a byte order mark, if ``data`` begin so: letters with a zero behind, or before,
    each."""
    begin = data[:256]
    for name, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        if len(begin) > 3 and begin[first::2].count(0) > len(begin) // 4 and not begin[1 - first :: 2].count(0):
            return None if data.startswith(_MARKS) else name
    return None


def text_lines(text: str) -> list[str]:
    """The lines of ``text``; unlike for ``str.splitlines``, they do not end at U+2028 and the like."""
    return re.split(r"\r\n?|\n", text)
