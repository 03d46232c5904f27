"""What the one-click examples use: pictures of the index, or a few drawn shapes if there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw

from clipkit.errors import ClipkitError
from clipkit.inference import Index

_COUNT = 4
_QUERIES = ("something to eat", "an animal", "people")
_LABELS = ("animal", "person", "food", "plant", "vehicle", "building", "sign")


@dataclass(frozen=True)
class Examples:
    """``pictures`` are files with ``captions`` in ``folder``, which goes with this object; Gradio keeps copies."""

    queries: list[str]
    pictures: list[str]
    captions: list[str]
    labels: list[str]
    folder: TemporaryDirectory[str]


def make_examples(index: Index | None) -> Examples:
    """A few queries, pictures, captions and labels; the same ones each time."""
    folder = TemporaryDirectory(prefix="clipkit-demo-")
    found = _from_index(index, Path(folder.name)) if index is not None else []
    if not found:
        drawn = _draw(Path(folder.name))
        captions = list(drawn.values())
        return Examples(captions[:3], list(drawn), captions, ["circle", "square", "triangle"], folder)
    own = [caption for _, caption in found if caption]
    captions = own if len(own) == len(found) else list(_QUERIES)
    return Examples([*own[:3], *_QUERIES], [path for path, _ in found], captions, list(_LABELS), folder)


def _from_index(index: Index, folder: Path) -> list[tuple[str, str]]:
    """Thumbnails of pictures spread over the index, with their captions; those that are gone are left out."""
    found: list[tuple[str, str]] = []
    count = min(_COUNT, len(index))
    for place in range(count):
        row = (2 * place + 1) * len(index) // (2 * count)
        try:
            thumbnail = index.thumbnail(row)
        except ClipkitError:
            continue
        path = folder / f"example-{place + 1}.png"
        thumbnail.save(path)
        found.append((str(path), index.items[row].caption))
    return found


def _draw(folder: Path) -> dict[str, str]:
    """Three coloured shapes: path -> caption."""
    shapes: dict[str, str] = {}
    for shape, colour in (("circle", "red"), ("square", "blue"), ("triangle", "green")):
        image = Image.new("RGB", (224, 224), "white")
        draw = ImageDraw.Draw(image)
        if shape == "circle":
            draw.ellipse((32, 32, 192, 192), fill=colour)
        elif shape == "square":
            draw.rectangle((32, 32, 192, 192), fill=colour)
        else:
            draw.polygon([(112, 32), (32, 192), (192, 192)], fill=colour)
        path = folder / f"{colour}-{shape}.png"
        image.save(path)
        shapes[str(path)] = f"a {colour} {shape}"
    return shapes
