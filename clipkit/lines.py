"""Bytes of a text file to text, and text to lines."""

from __future__ import annotations

import codecs
import re

from clipkit.errors import ClipkitError


def decode_text(data: bytes, encoding: str | None, errors: str = "strict") -> str:
    """``data`` in ``encoding``; if None in UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ClipkitError: there is no such encoding.
        UnicodeDecodeError: ``data`` are no such text.
    """
    if encoding is None:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "utf-16" if utf16 else "utf-8-sig"
    try:
        return data.decode(encoding, errors)
    except LookupError:
        raise ClipkitError(f"{encoding}: no such text encoding; try utf-8 or latin-1") from None


def text_lines(text: str) -> list[str]:
    """The lines of ``text``; unlike for ``str.splitlines``, they do not end at U+2028 and the like."""
    return re.split(r"\r\n?|\n", text)
