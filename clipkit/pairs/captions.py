"""Captions as they are used: mended where an encoding was mistaken for another, in single spaces."""

from __future__ import annotations

import html

import ftfy


def clean_caption(text: str) -> str:
    """``text`` with ``&amp;`` and ``cafÃ©`` made what they were meant to be, and its white space made single spaces."""
    if not text.isascii():
        text = ftfy.fix_text(text)
    if "&" in text:
        text = html.unescape(html.unescape(text))  # twice: ``&amp;amp;`` is common in what was scraped
    return " ".join(text.split())
