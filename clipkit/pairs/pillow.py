"""Pictures as Pillow opens them, made like others: upright, and grey of many bits in eight. Needs no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floats scaled to L, every other ``image`` as it is."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image, dtype=np.float64)
    # I and F do not say their range, which is the least that holds all; 16 bits do, however dark the picture is
    largest = 65535.0 if image.mode.startswith("I;16") else values.max(initial=0)
    top = 65535.0 if largest > 255 else 255.0 if largest > 1 or image.mode == "I" else 1.0
    return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
