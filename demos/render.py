"""Probabilities as HTML. Everything from outside is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from clipkit.inference.match_sheet import picture_tag
from demos.inputs import Picture

_SHOWN = 10  # bars of one picture; the rest is in the data


def bars_html(pictures: Sequence[Picture], best: Sequence[Sequence[tuple[str, float]]], note: str) -> str:
    """A card for each picture: its labels, best first, with probability bars.

    Args:
        best: for each picture (label, probability), best first.
        note: how the probabilities are meant.
    """
    cards = []
    for picture, row in zip(pictures, best, strict=True):
        bars = "".join(_bar(label, probability) for label, probability in row[:_SHOWN])
        rest = f'<p class="ck-note">{len(row) - _SHOWN} more in the data below</p>' if len(row) > _SHOWN else ""
        cards.append(
            f'<section class="ck-card">{picture_tag(picture.preview, 160, picture.name)}'
            f'<div class="ck-side"><h3>{escape(picture.name)}</h3><ol class="ck-bars">{bars}</ol>{rest}</div></section>'
        )
    return f'<div class="ck-cards">{"".join(cards)}</div><p class="ck-note">{escape(note)}</p>'


def _bar(label: str, probability: float) -> str:
    percent = f"{probability:.1%}"
    return (
        f'<li><span class="ck-label">{escape(label)}</span><span class="ck-percent">{percent}</span>'
        f'<span class="ck-track" aria-hidden="true"><span style="width:{100 * probability:.2f}%"></span></span></li>'
    )
