"""Pictures for the tests of decoding and resizing."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something like a photograph: smooth shapes, edges, a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(0.5, 5, (3, 3))]
    values = np.stack(waves, -1) * 80 + 128 + rng.normal(0, 4, (height, width, 3))
    values[(x - 0.5) ** 2 + (y - 0.3) ** 2 < 0.02] = (250, 20, 30)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Largest and mean difference, in 255ths."""
    assert a.shape == b.shape
    d = (a.double() - b.double()).abs()
    return float(d.max()), float(d.mean())
