"""A small batch that needs no data: drawn shapes with captions, sentences, or users with what they chose.

It is written as the files that people have (a shard, tables), so that a recipe reads it as it reads anything else.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

SIDE = 128  # pixels of a drawn picture
COLOURS = {
    "red": (214, 48, 49), "blue": (40, 90, 200), "green": (38, 150, 84), "yellow": (240, 196, 25),
    "purple": (130, 60, 160), "orange": (232, 126, 34),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star")
# The first eight are chosen, so that few samples show what there is to show: the fourth says what the first says,
# and shapes, which are the labels, come again.
_FIRST = [
    ("red", "circle"), ("blue", "square"), ("green", "triangle"), ("red", "circle"),
    ("yellow", "square"), ("blue", "star"), ("green", "circle"), ("purple", "triangle"),
]  # fmt: skip

_SENTENCES = [
    ("a dog runs on the beach", "a dog is running along the sea", "a cat sleeps on the beach"),
    ("two children play chess", "a pair of kids at a game of chess", "two children play football"),
    ("the train leaves at noon", "", ""),
    ("she plays the violin", "a woman is playing a violin", "she sells the violin"),
    ("it will rain tomorrow", "rain is expected tomorrow", "it rained yesterday"),
    ("the shop is closed today", "", ""),
    ("a man cuts an onion", "someone is slicing an onion", "a man eats an onion"),
    ("the museum opens on Sunday", "on Sundays the museum is open", "the museum is closed on Sunday"),
]
_USERS = ("Ann", "Ben", "Cem", "Dana", "Eli", "Fay", "Gus", "Hana")
_ITEMS = ("green tea", "teapot", "novel", "lamp", "kettle", "atlas")


def write_samples(folder: Path, compared: str, n: int) -> Path:
    """Write ``n`` samples into ``folder``, for what ``--compare`` asks for.

    Args:
        folder: exists and is empty.
        compared: as ``DataConfig.compare``: sentences and interactions come as a table, all else as a shard of
            pictures with captions, labels (their shapes) and hard negatives.
        n: how many.

    Returns:
        What to give as ``--train-data``.
    """
    if compared == "sentences":
        rows = [_SENTENCES[i % len(_SENTENCES)] for i in range(n)]
        again = [i // len(_SENTENCES) for i in range(n)]  # a sentence that comes again says so
        texts = [[f"{t} ({a + 1})" if t and a else t for t in row] for row, a in zip(rows, again, strict=True)]
        return _table(folder / "sentences.csv", ["sentence1", "sentence2", "negative"], texts)
    if compared == "interactions":
        chosen = [[_user(i), _item(i)] for i in range(n)]
        return _table(folder / "chosen.csv", ["user", "item"], [*chosen, *_held_out(chosen)])
    return _shard(folder / "shapes.tar", n)


def _table(path: Path, head: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def _user(i: int) -> str:
    person, again = i // 2 % len(_USERS), i // 2 // len(_USERS)
    return _USERS[person] + (f" {again + 1}" if again else "")


def _item(i: int) -> str:
    """Every second user's first item is the first user's: another's choice of one's own item is no negative."""
    return _ITEMS[0] if i % 4 == 2 else _ITEMS[(i // 2 + i) % len(_ITEMS)]


def _held_out(chosen: list[list[str]]) -> list[list[str]]:
    """Two further items of each user: the last are held out for validation and for the test."""
    items: dict[str, list[str]] = {}
    for user, item in chosen:
        items.setdefault(user, []).append(item)
    return [[user, item] for user, own in items.items() for item in [x for x in _ITEMS if x not in own][:2]]


def _shard(path: Path, n: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for i in range(n):
            colour, shape = _FIRST[i] if i < len(_FIRST) else _kind(i)
            wrong = list(COLOURS)[(list(COLOURS).index(colour) + 1) % len(COLOURS)]
            record = {"captions": [_caption(colour, shape)], "label": shape, "negative": _caption(wrong, shape)}
            for ending, data in (("png", _draw(colour, shape, i)), ("json", json.dumps(record).encode())):
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def _kind(i: int) -> tuple[str, str]:
    """The kinds in turn, colours and shapes changing together."""
    return list(COLOURS)[i % len(COLOURS)], SHAPES[(i + i // 12) % len(SHAPES)]


def _caption(colour: str, shape: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def _draw(colour: str, shape: str, i: int) -> bytes:
    """A PNG of the shape on a pale ground, a little elsewhere and of another size in each sample."""
    import math

    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), (238 - 7 * (i % 3), 236, 226 + 7 * (i % 4)))
    pen = ImageDraw.Draw(image)
    x, y = SIDE / 2 + 9 * (i % 3 - 1), SIDE / 2 + 9 * (i % 5 - 2) / 2
    radius = SIDE * (0.30 + 0.03 * (i % 4))
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=COLOURS[colour])
    else:
        corners, reach = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.45)}[shape]
        start = -math.pi / 4 if shape == "square" else -math.pi / 2
        points = []
        for corner in range(corners):
            length = radius * 1.15 * (reach if corner % 2 else 1.0)
            angle = start + 2 * math.pi * corner / corners
            points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
        pen.polygon(points, fill=COLOURS[colour])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
