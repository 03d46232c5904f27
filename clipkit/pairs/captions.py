"""Captions as samples hold them, and as they are used: mended where an encoding was mistaken for another, in single
spaces."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

import ftfy
from ftfy.fixes import fix_surrogates

from clipkit.errors import ClipkitError
from clipkit.lines import decode_text, text_lines

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


def parse_captions(record: bytes, text: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A sample's json and its captions, from the bytes of its ``.json`` and ``.txt``.

    Raises:
        ClipkitError: the json is no json, or holds something else than captions; or the text is no UTF-8.
    """
    meta: dict[str, Any] = {}
    if record:
        try:
            meta = parse_json(record)
        except ValueError:
            raise ClipkitError("its .json is not valid JSON, or nested too deeply") from None
        if not isinstance(meta, dict):
            raise ClipkitError(f"its .json holds a {type(meta).__name__}, expected an object")
    for stored in _places(meta, text):
        if stored and not isinstance(stored, str | list):
            raise ClipkitError(f"the captions in its .json are a {type(stored).__name__}, not a list of texts")
        said = [stored] if isinstance(stored, str) else stored or []
        if captions := tuple(cleaned for c in said if isinstance(c, str) and (cleaned := clean_caption(c))):
            return meta, captions
    return meta, ()


def _places(meta: dict[str, Any], text: bytes) -> Iterator[Any]:
    """Where captions may be, the best place first; what lies behind good ones is not looked at."""
    yield meta.get("captions")
    yield _lines(text)
    yield meta.get("caption")


def no_caption(meta: dict[str, Any]) -> str:
    """Why a sample with this json has no caption."""
    names = ", ".join(str(name)[:40] for name in list(meta)[:10])
    return "no caption, or only empty ones" + (f" (its json has {names}; captions is what is read)" if names else "")


def _lines(text: bytes) -> list[str]:
    """The captions in a ``.txt``, one a line, as in a folder of pictures."""
    if not text:
        return []
    try:
        return text_lines(decode_text(text, None))
    except UnicodeDecodeError:
        raise ClipkitError("its .txt is not UTF-8; write it again in UTF-8") from None
