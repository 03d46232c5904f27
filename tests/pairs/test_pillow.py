"""Pictures are turned as Pillow turns them, and a damaged EXIF block costs no picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from photos import encoded, photo
from PIL import Image, ImageOps

from clipkit.pairs import decode_image
from clipkit.pairs.pillow import upright

# orientation 6, and a unit of the resolution that is a text, which Pillow reads but cannot write
DAMAGED = b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\6\0\0\0\x28\1\2\0\1\0\0\0a\0\0\0\0\0\0\0"


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("said", ["exif", "xmp"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_pixels_are_those_of_exif_transpose(orientation: int, format: str, said: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    for mode in ("L", "RGB"):
        data = encoded(photo(60, 40).convert(mode), format, **({"exif": exif} if said == "exif" else {"xmp": xmp}))
        expected = ImageOps.exif_transpose(opened(data))
        got = upright(opened(data))
        assert got.mode == expected.mode and np.array_equal(got, expected)
        assert np.array_equal(upright(got), got), "turned once"


def test_a_damaged_exif_block_costs_no_picture() -> None:
    image = photo(60, 40)
    data = encoded(image, "JPEG", exif=DAMAGED)
    with pytest.raises(Exception, match="integer"):
        ImageOps.exif_transpose(opened(data))
    stored = decode_image(encoded(image, "JPEG"))
    assert torch.equal(decode_image(data), stored.rot90(-1, (1, 2)))
    for at in range(6, len(DAMAGED)):
        for value in (0, 5, 255):
            exif = DAMAGED[:at] + bytes([value]) + DAMAGED[at + 1 :]
            got = decode_image(encoded(image, "JPEG", exif=exif))
            assert any(torch.equal(got if got.shape[1] == 40 else got.mT, way) for way in ways(stored)), exif


def ways(pixels: torch.Tensor) -> list[torch.Tensor]:
    """The four ways up of a picture that is wider than high."""
    return [pixels, pixels.flip(1), pixels.flip(2), pixels.flip(1, 2)]
