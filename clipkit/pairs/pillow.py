"""Picture files of any kind, made like others: of a size that can be read, upright, and grey of many bits in eight.
Needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

MAX_FILE = 1 << 30  # bytes of a picture's file
_ORIENTATION = 0x0112
_SAID_IN = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def too_large(path: Path) -> str | None:
    """Why the file at ``path`` is not read, if it is larger than ``MAX_FILE``.

    Raises:
        OSError: there is none.
    """
    size = path.stat().st_size
    if size <= MAX_FILE:
        return None
    return f"{size / 2**30:,.1f} GiB; a picture file of more than {MAX_FILE >> 30} GiB is not read"


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floats scaled to L, every other ``image`` as it is."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image, dtype=np.float64)
    # I and F do not say their range, which is the least that holds all; 16 bits do, however dark the picture is
    largest = 65535.0 if image.mode.startswith("I;16") else values.max(initial=0)
    top = 65535.0 if largest > 255 else 255.0 if largest > 1 or image.mode == "I" else 1.0
    return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))


def upright(image: Image.Image) -> Image.Image:
    """``image``, loaded, turned as its EXIF says, which it says no more then; as it is stored where that is unreadable.

    The pixels are those of ``ImageOps.exif_transpose``, which also writes the rest of the EXIF anew: of a damaged block
    that raises whatever there is to raise.
    """
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises as many errors when it reads one
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in _SAID_IN:
        turned.info.pop(name, None)
    return turned
