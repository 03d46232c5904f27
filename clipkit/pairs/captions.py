"""Captions as they are used: mended where an encoding was mistaken for another, in single spaces."""

from __future__ import annotations

import html
import json
from typing import Any

import ftfy
from ftfy.fixes import fix_surrogates

_DEEPEST = 100  # lists and objects inside one another: far from Python's own bound, which a later step may meet


def clean_caption(text: str) -> str:
    """``text`` with ``&amp;`` and ``cafÃ©`` made what they were meant to be, and its white space made single spaces."""
    if not text.isascii():
        text = ftfy.fix_text(text)
    if "&" in text:
        text = html.unescape(html.unescape(text))  # twice: ``&amp;amp;`` is common in what was scraped
    return " ".join(text.split())


def whole_characters(text: str) -> str:
    """``text`` as UTF-8 can hold it: halves of a character side by side are joined, one that is alone becomes U+FFFD.

    JSON and other programs' strings hold such halves where a text was cut inside an emoji.
    """
    return text if text.isascii() else fix_surrogates(text)


def parse_json(text: str | bytes) -> Any:
    """``json.loads``, which takes nothing that is nested deeper than anybody writes.

    Raises:
        ValueError: no JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    opening: tuple[Any, Any] = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(text.count(bracket) for bracket in opening) > _DEEPEST:
        inside = [value] if isinstance(value, dict | list) else []
        for _ in range(_DEEPEST + 1):
            inside = [v for one in inside for v in (one.values() if isinstance(one, dict) else one)]
            inside = [v for v in inside if isinstance(v, dict | list)]
            if not inside:
                return value
        raise ValueError("it is nested too deeply")
    return value
