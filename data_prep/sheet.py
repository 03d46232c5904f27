"""The contact sheet: pictures of a data set, evenly taken from all of it, each with its first caption."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipkit.pairs.pillow import upright
from data_prep.images import as_rgb

COLUMNS, ROWS = 8, 6
_CELL, _TEXT, _GAP = 144, 34, 8  # pixels: side of a picture, height of its caption, space between
_FONT_SIZE = 12


def contact_sheet(shards: Sequence[Path]) -> bytes:
    """A JPEG of at most ``COLUMNS`` x ``ROWS`` pictures of ``shards``; masked samples are not shown."""
    from clipkit.errors import ClipkitError
    from clipkit.pairs.index import load_index
    from clipkit.pairs.mask import kept
    from clipkit.pairs.shards import ShardSet

    samples = ShardSet([kept(load_index(path)) for path in shards], "contact sheet")
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(COLUMNS * ROWS, len(samples))).round().astype(int))
    rows = -(-len(chosen) // COLUMNS)
    width, height = _GAP + COLUMNS * (_CELL + _GAP), _GAP + rows * (_CELL + _TEXT + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for place, row in enumerate(chosen):
        x = _GAP + place % COLUMNS * (_CELL + _GAP)
        y = _GAP + place // COLUMNS * (_CELL + _TEXT + _GAP)
        try:
            sample = samples.read(int(row))
            picture = _small(sample.image)
        except (ClipkitError, OSError):  # shards of elsewhere, or of --no-verify: the sheet shows a gap
            continue
        sheet.paste(picture, (x + (_CELL - picture.width) // 2, y + (_CELL - picture.height) // 2))
        for line, text in enumerate(_lines(sample.captions[0] if sample.captions else "", font)):
            draw.text((x, y + _CELL + 2 + line * (_FONT_SIZE + 3)), text, "black", font)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _small(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (_CELL, _CELL))
        picture = as_rgb(upright(image))
    picture.thumbnail((_CELL, _CELL))
    return picture


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has more scripts than Pillow's own."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _FONT_SIZE)


def _lines(caption: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """The beginning of ``caption`` on two lines as wide as a picture."""
    lines, rest = [], caption[:200]
    for last in (False, True):
        n = len(rest)
        while n and font.getlength(rest[:n] + ("…" if last and n < len(rest) else "")) > _CELL:
            n -= 1
        if n < len(rest) and not last and " " in rest[1:n]:
            n = rest.rindex(" ", 1, n)
        lines.append(rest[:n] + ("…" if last and n < len(rest) else ""))
        rest = rest[n:].lstrip()
    return lines
