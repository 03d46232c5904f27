"""Probabilities as HTML. Everything from outside is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from clipkit.inference.match_sheet import picture_tag
from demos.inputs import Picture

_SHOWN = 10  # bars of one picture; the rest is in the data


def bars_html(
    pictures: Sequence[Picture], best: Sequence[Sequence[tuple[str, float]]], note: str, none_below: float = 0
) -> str:
    """A card for each picture: its labels, best first, with probability bars.

    Args:
        best: for each picture (label, probability), best first.
        note: how the probabilities are meant.
        none_below: a picture whose best probability is lower is none of these; 0 for never.
    """
    cards = []
    for picture, row in zip(pictures, best, strict=True):
        bars = "".join(_bar(label, probability, none_below) for label, probability in row[:_SHOWN])
        rest = f'<p class="ck-note">{len(row) - _SHOWN} more in the data below</p>' if len(row) > _SHOWN else ""
        none = row[0][1] < none_below
        said = f'<p class="ck-none"><b>None of these</b>: nothing reaches {none_below:.1%}</p>' if none else ""
        alt = "none of these" if none else f"best label: {row[0][0]}"
        cards.append(
            f'<section class="ck-card{" ck-unknown" if none else ""}">{picture_tag(picture.preview, 160, alt)}'
            f'<div class="ck-side"><h3>{escape(picture.name)}</h3>{said}<ol class="ck-bars">{bars}</ol>{rest}</div>'
            "</section>"
        )
    if none_below:
        note += f" The mark on the bars is at {none_below:.1%}: a picture without a longer bar is none of these."
    return f'<div class="ck-cards">{"".join(cards)}</div><p class="ck-note">{escape(note)}</p>'


def _bar(label: str, probability: float, none_below: float) -> str:
    percent = f"{probability:.1%}" if probability >= 0.001 else f"{100 * probability:.1g}%"
    mark = f'<i style="left:{100 * none_below:.2f}%"></i>' if none_below else ""
    return (
        f'<li><span class="ck-label">{escape(label)}</span><span class="ck-percent">{percent}</span>'
        f'<span class="ck-track" aria-hidden="true"><span style="width:{100 * probability:.2f}%"></span>{mark}</span>'
        "</li>"
    )
