"""Lines of a text."""

from __future__ import annotations

import re


def text_lines(text: str) -> list[str]:
    """The lines of ``text``; unlike for ``str.splitlines``, they do not end at U+2028 and the like."""
    return re.split(r"\r\n?|\n", text)
