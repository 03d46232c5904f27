"""Encoded pictures to uint8 tensors of their own size.

JPEG is decoded with simplejpeg (libjpeg-turbo: bit for bit what torchvision decodes, in less time); everything that it
does not know (PNG, WebP, CMYK, palette, EXIF rotation, 16 bit, animations) goes through PIL.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal

import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.pairs.index import MAX_PIXELS
from clipkit.pairs.pillow import eight_bits, upright
from clipkit.pairs.vision import F

Decode = Literal["fast", "reference"]


def decode_image(data: bytes, where: str = "picture") -> Tensor:
    """Decode to uint8 (3, H, W), RGB, turned as its EXIF says, transparency on white.

    Args:
        data: the encoded picture.
        where: its name for messages.

    Raises:
        ClipkitError: no picture, damaged, or more than 179 million pixels.
    """
    if data[:3] == b"\xff\xd8\xff" and _plain_jpeg(data):
        try:
            return torch.from_numpy(simplejpeg.decode_jpeg(data).transpose(2, 0, 1))
        except (ValueError, MemoryError):
            pass  # PIL says better what is wrong, and reads some that libjpeg-turbo warns of
    return F.pil_to_tensor(to_rgb(upright(open_picture(data, where))))


def open_picture(data: bytes | Path, where: str) -> Image.Image:
    """The picture as PIL has it, loaded whole; errors become one line that names ``where``."""
    if not isinstance(data, Path) and not data:
        raise ClipkitError(f"{where}: an empty file, not a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns from half the bound on; above it, it is refused below
            image = Image.open(data if isinstance(data, Path) else io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise ClipkitError(
                    f"{where}: {image.width}x{image.height} pixels; more than {MAX_PIXELS:,} are refused; scale it down"
                )
            image.load()
    except ClipkitError:
        raise
    except Exception as error:  # PIL's plugins raise whatever they like on damaged data
        if isinstance(error, FileNotFoundError):
            raise ClipkitError(f"{where}: no such file") from None
        if isinstance(error, Image.UnidentifiedImageError):
            raise ClipkitError(f"{where}: not a picture in a known format") from None
        raise ClipkitError(f"{where}: cannot be read as a picture ({str(error) or type(error).__name__})") from None
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` in RGB: transparency laid on white, 16-bit grey scaled to 8 bits."""
    image = eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _plain_jpeg(data: bytes) -> bool:
    """Grey or YCbCr, not rotated by EXIF: what libjpeg-turbo alone turns into the right RGB."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return False
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0" and _rotated(data[at + 10 : at + 2 + length]):
            return False
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            size = int.from_bytes(data[at + 5 : at + 7], "big") * int.from_bytes(data[at + 7 : at + 9], "big")
            return data[at + 9 : at + 10] in (b"\x01", b"\x03") and 0 < size <= MAX_PIXELS
        if marker == 0xDA:
            return False
        at += 2 + length
    return False


def _rotated(tiff: bytes) -> bool:
    """Whether the first directory of an EXIF block holds an orientation (tag 0x0112) other than 1."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    directory = int.from_bytes(tiff[4:8], order)
    for entry in range(int.from_bytes(tiff[directory : directory + 2], order)):
        at = directory + 2 + 12 * entry
        if int.from_bytes(tiff[at : at + 2], order) == 0x0112:
            return int.from_bytes(tiff[at + 8 : at + 10], order) not in (0, 1)
    return False
