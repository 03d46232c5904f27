"""A match as HTML: the similarity matrix with its best matches and its one-to-one pairs.

The demo shows these tables, and ``clipkit match --html`` writes them as one file that loads nothing. Everything from
outside is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.inference.aligner import Match

MAX_CELLS = 2_500  # of a heatmap; more cells are no longer read, only scrolled
COLUMNS = ("picture", "best_caption", "score", "assigned_caption", "assigned_score")

# Colours and sizes are variables with Gradio's names, which the demo's theme and the sheet below both define.
CSS = """
.ck-hidden {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
.ck-note { font-size: var(--text-sm); margin: 0.5rem 0 1.25rem; }
.ck-scroll { overflow-x: auto; max-width: 100%; position: relative; }
.ck-scroll table {
  border: 0 !important; border-collapse: separate; border-spacing: 2px; margin: 0.5rem 0; color: var(--body-text-color);
}
.ck-scroll caption { text-align: left; font-weight: 600; padding: 0.25rem 0; }
.ck-scroll th, .ck-scroll td {
  padding: 0.4rem 0.6rem; border: 0; text-align: left; font-weight: 400; vertical-align: middle;
}
.ck-scroll thead th { font-weight: 600; vertical-align: bottom; background: none; }
.ck-matrix thead th { min-width: 6rem; max-width: 12rem; overflow-wrap: anywhere; }
.ck-matrix th:first-child {
  position: sticky; left: 0; background: var(--background-fill-primary); max-width: 9rem; z-index: 1;
}
.ck-scroll tbody th img { display: block; margin: 0 0 0.2rem; border-radius: 4px; }
.ck-scroll tbody th span { display: block; font-size: var(--text-xs); overflow-wrap: anywhere; }
.ck-matrix td {
  background: color-mix(in srgb, var(--color-accent) var(--shade), transparent);
  font-variant-numeric: tabular-nums; white-space: nowrap; border-radius: 4px;
}
.ck-matrix td b { margin-left: 0.3rem; }
.ck-matrix td.ck-pair, .ck-key { outline: 2px solid var(--body-text-color); outline-offset: -2px; }
.ck-key { padding: 0.1rem 0.4rem; border-radius: 4px; }
.ck-list { width: 100%; table-layout: fixed; }
.ck-list tr > * { border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: anywhere; }
"""

_PAGE_CSS = """
:root {
  color-scheme: light dark; --body-text-color: #1c1d1f; --background-fill-primary: #fcfbf8; --color-accent: #2563eb;
  --border-color-primary: #dddad2; --text-sm: 0.875rem; --text-xs: 0.75rem;
}
@media (prefers-color-scheme: dark) { :root {
  --body-text-color: #e7e5df; --background-fill-primary: #15171a; --color-accent: #60a5fa;
  --border-color-primary: #33373d;
} }
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 1200px; font: 16px/1.5 system-ui, sans-serif;
  color: var(--body-text-color); background: var(--background-fill-primary);
}
h1 { font-size: 1.5rem; margin: 0; }
"""


class Shown(Protocol):
    """A picture that the tables show."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def preview(self) -> Image.Image:
        """The picture, small."""


def match_tables(found: Match, pictures: Sequence[Shown], captions: Sequence[str]) -> str:
    """The matrix as a heatmap with numbers, then the matches in words.

    Args:
        found: of ``pictures`` and ``captions``, in their order.
    """
    return "".join(part(found, pictures, captions) for part in (_matrix, _by_picture, _by_caption))


def match_document(found: Match, pictures: Sequence[Shown], captions: Sequence[str], model: str) -> str:
    """``match_tables`` as a whole document that holds its pictures and loads nothing from anywhere.

    Args:
        model: what the model is called.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    about = f"{len(pictures):,} pictures and {len(captions):,} captions, matched by {escape(model)}."
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>Matches · clipkit</title>\n<style>{_PAGE_CSS}{CSS}</style>\n'
        f'</head>\n<body>\n<main>\n<h1>Matches</h1>\n<p class="ck-note">{about}</p>\n'
        f"{match_tables(found, pictures, captions)}\n</main>\n</body>\n</html>\n"
    )


def match_rows(found: Match, names: Sequence[str], captions: Sequence[str]) -> list[list[str]]:
    """A row for each picture under ``COLUMNS``, for CSV; empty where no caption is left for a picture."""
    assigned = dict(found.assignment)
    rows = []
    for i, name in enumerate(names):
        best, one = int(found.best_caption[i]), assigned.get(i)
        row = [name, captions[best], f"{found.matrix[i, best]:.4f}"]
        rows.append([*row, *(("", "") if one is None else (captions[one], f"{found.matrix[i, one]:.4f}"))])
    return rows


def picture_tag(image: Image.Image, side: int, alt: str) -> str:
    """The picture in the page itself, at most ``side`` pixels wide and high."""
    small = image.copy()
    small.thumbnail((2 * side, 2 * side), Image.Resampling.LANCZOS)  # twice, for dense screens
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f"max-width:{side}px;max-height:{side}px"
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(alt)}" style="{size}">'


def _matrix(found: Match, pictures: Sequence[Shown], captions: Sequence[str]) -> str:
    if found.matrix.size > MAX_CELLS:
        return (
            f'<p class="ck-note">{found.matrix.size:,} similarities are more than a table can show; '
            "the best ones are below.</p>"
        )
    shade = _shades(found.matrix)
    pairs = set(found.assignment)
    head = "".join(f'<th scope="col">{escape(caption)}</th>' for caption in captions)
    rows = []
    for i, picture in enumerate(pictures):
        best = captions[found.best_caption[i]]
        cells = []
        for j in range(len(captions)):
            marks = _marks(found, i, j)
            pair = ' class="ck-pair"' if (i, j) in pairs else ""
            cells.append(f'<td{pair} style="--shade:{shade[i, j]:.0f}%">{found.matrix[i, j]:.3f}{marks}</td>')
        rows.append(f'<tr><th scope="row">{_named(picture, best)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="ck-scroll" tabindex="0" role="region" aria-label="Similarity matrix"><table class="ck-matrix">'
        "<caption>Cosine similarity of pictures and captions</caption>"
        f'<thead><tr><th scope="col">Picture</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        '<p class="ck-note">The deeper the colour, the more alike. <b>▸</b> best caption of the picture, '
        '<b>▴</b> best picture of the caption, <span class="ck-key">framed</span> pair of the one-to-one assignment '
        "with the largest total similarity.</p>"
    )


def _marks(found: Match, i: int, j: int) -> str:
    marks = ""
    if found.best_caption[i] == j:
        marks += '<b aria-hidden="true">▸</b><span class="ck-hidden"> best caption of this picture</span>'
    if found.best_image[j] == i:
        marks += '<b aria-hidden="true">▴</b><span class="ck-hidden"> best picture of this caption</span>'
    if (i, j) in found.assignment:
        marks += '<span class="ck-hidden"> assigned to each other</span>'
    return marks


def _by_picture(found: Match, pictures: Sequence[Shown], captions: Sequence[str]) -> str:
    assigned = dict(found.assignment)
    rows = []
    for i, picture in enumerate(pictures):
        best = int(found.best_caption[i])
        # where the matrix is left out, the pictures are shown here
        name = _named(picture, captions[best]) if found.matrix.size > MAX_CELLS else escape(picture.name)
        one = _scored(found, i, assigned[i], captions[assigned[i]]) if i in assigned else "–"
        rows.append((name, _scored(found, i, best, captions[best]), one))
    return _table("Pictures", ("Picture", "Best caption", "One-to-one"), rows)


def _by_caption(found: Match, pictures: Sequence[Shown], captions: Sequence[str]) -> str:
    assigned = {j: i for i, j in found.assignment}
    rows = []
    for j, caption in enumerate(captions):
        best = int(found.best_image[j])
        one = _scored(found, assigned[j], j, pictures[assigned[j]].name) if j in assigned else "–"
        rows.append((escape(caption), _scored(found, best, j, pictures[best].name), one))
    return _table("Captions", ("Caption", "Best picture", "One-to-one"), rows)


def _scored(found: Match, i: int, j: int, text: str) -> str:
    return f"{escape(text)} ({found.matrix[i, j]:.3f})"


def _named(picture: Shown, caption: str) -> str:
    """The picture with its name; its name stands beside it, so its alternative text is what the model sees in it."""
    return f"{picture_tag(picture.preview, 56, f'best caption: {caption}')}<span>{escape(picture.name)}</span>"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="ck-scroll"><table class="ck-list"><caption>{escape(title)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _shades(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Percent of the accent colour in each cell: the smallest similarity shown has none, the largest 60."""
    low, high = float(matrix.min()), float(matrix.max())
    return 60.0 * (matrix.astype(np.float64) - low) / max(high - low, 1e-9)
