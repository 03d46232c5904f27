"""The bare page of the report and what its sections share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any


def page(title: str, style: str, body: Sequence[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # the icon of nothing, so that a browser asks no server for one
        f'<link rel="icon" href="data:,">\n<title>{escape(title)} · clipkit</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n" + "\n".join(filter(None, body)) + "\n</main>\n"
        "</body>\n</html>\n"
    )


def section(title: str, about: str, body: str) -> str:
    """A section: title (plain text) and what to know about it (HTML) on the left, the body on the right."""
    return f"<section><header><h2>{escape(title)}</h2>{about}</header><div>{body}</div></section>"


def percent(share: float) -> str:
    """A share in percent, with two digits where one decimal would hide it."""
    if share != 0 and abs(share) < 0.0095:
        return f"{100 * share:.2g} %"
    return f"{100 * share:.1f} %"


def count(number: int, noun: str) -> str:
    """ "1 step", "1,200 steps"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def cosine(score: float) -> str:
    """A cosine with two digits and a real minus sign."""
    return f"{score:.2f}".replace("-0.00", "0.00").replace("-", "−")


def finite(value: Any) -> bool:
    """Whether a value from a JSON record is a number that can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
