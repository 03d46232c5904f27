"""Is this a picture, in which bytes do we keep it, and what does it look like?"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.pairs.index import MAX_PIXELS
from clipkit.pairs.pillow import eight_bits, upright
from data_prep.looks import Look, look_of

KEPT = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
}  # MPO: a JPEG with further pictures behind it
_LOOK_SIDE = 64  # pixels of the shorter side that a look is taken from, at least


@dataclass(frozen=True)
class Encoding:
    """How pictures are stored."""

    max_side: int | None = None
    """Scale pictures down until their shorter side has at most this many pixels. Default: as they are."""
    format: Literal["keep", "jpeg", "webp"] = "keep"
    """Encode pictures as jpeg or webp. keep leaves JPEG, PNG and WebP byte for byte unless they are scaled."""
    quality: int = 90
    """Quality of pictures that are encoded anew, 1 to 100."""

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 1:
            raise ClipkitError(f"--max-side {self.max_side}: expected at least 1 pixel")
        if not 1 <= self.quality <= 100:
            raise ClipkitError(f"--quality {self.quality}: expected 1 to 100")
        if self.format not in ("keep", "jpeg", "webp"):
            raise ClipkitError(f"--format {self.format}: expected keep, jpeg or webp")


@dataclass(frozen=True)
class Picture:
    """A checked picture.

    Attributes:
        data: the bytes to store.
        extension: ``jpg``, ``png`` or ``webp``.
        size: width and height of the stored picture, in pixels, before an EXIF rotation.
        source_size: the same of the picture that was given.
        look: what it looks like, for finding copies; None if nobody asked.
    """

    data: bytes
    extension: str
    size: tuple[int, int]
    source_size: tuple[int, int]
    look: Look | None


def checked_picture(
    data: bytes, encoding: Encoding | None = None, verify: bool = True, with_look: bool = False
) -> Picture:
    """The picture in ``data`` as it is stored.

    JPEG, PNG and WebP stay byte for byte as they are, unless ``encoding`` wants them smaller or in another format.
    Everything else that Pillow reads becomes a PNG of the first frame, turned upright, in RGB (RGBA where something
    is transparent, 16-bit grey as it is, 32-bit and floating grey in 8 bits). What is encoded anew is upright and keeps
    no metadata but its colour profile.

    Args:
        data: an encoded picture.
        encoding: size and format to store.
        verify: decode it to see that it is whole. ``Image.verify`` reads checksums and headers only and does
            not notice a JPEG that was cut off, so all of the compressed data is decoded.
        with_look: also compute its look.

    Raises:
        ClipkitError: it is no picture, it is damaged, or it would unpack to more than ``MAX_PIXELS`` pixels.
    """
    encoding = encoding or Encoding()
    if not data:
        raise ClipkitError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that Pillow repairs, and of bombs, which are refused below
            return _checked(data, encoding, verify, with_look)
    except ClipkitError:
        raise
    except Image.DecompressionBombError:
        raise ClipkitError("far too many pixels: refused as a possible decompression bomb") from None
    except Image.UnidentifiedImageError:
        raise ClipkitError("not a picture in a format that can be read") from None
    except MemoryError:
        raise ClipkitError("too large for the memory") from None
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ... for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ClipkitError(f"damaged picture ({reason})") from None


def _checked(data: bytes, encoding: Encoding, verify: bool, with_look: bool) -> Picture:
    with Image.open(io.BytesIO(data)) as image:
        source_size = image.size
        if image.width * image.height > MAX_PIXELS:
            raise ClipkitError(f"{image.width} x {image.height} pixels: refused as a possible decompression bomb")
        extension = KEPT.get(image.format or "")
        wanted = {"jpeg": "jpg", "webp": "webp"}.get(encoding.format, extension or "png")
        too_large = encoding.max_side is not None and min(image.size) > encoding.max_side
        if extension == wanted and not too_large:
            if verify or with_look:
                _load_small(image, with_look)
            look = look_of(upright(image)) if with_look else None
            return Picture(data, extension, source_size, source_size, look)
        if too_large and extension == "jpg":
            assert encoding.max_side is not None
            _draft(image, 2 * encoding.max_side)  # twice what is kept, so that the last scaling decides the quality
        kept = upright(image)
        if too_large:
            kept = _scaled(kept, encoding.max_side or 0)
        stored = _encoded(kept, wanted, encoding.quality)
        return Picture(stored, wanted, kept.size, source_size, look_of(kept) if with_look else None)


def _load_small(image: Image.Image, with_look: bool) -> None:
    """Decode all of it. A JPEG at an eighth of the size, or as much as its look needs: every coded block is still
    read and Huffman-decoded, which is where damage shows; only the inverse transform, which cannot fail, is cut
    short."""
    if image.format in ("JPEG", "MPO"):
        _draft(image, _LOOK_SIDE if with_look else 1)
    image.load()


def _draft(image: Image.Image, side: int) -> None:
    """Have a JPEG decoded at a half, a quarter or an eighth, whichever leaves the shorter side ``side`` pixels."""
    scale = next((s for s in (8, 4, 2) if min(image.size) // s >= side), 8 if side == 1 else 1)
    if scale > 1:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))


def _scaled(image: Image.Image, side: int) -> Image.Image:
    ratio = side / min(image.size)
    size = (max(side, round(image.width * ratio)), max(side, round(image.height * ratio)))
    return _plain(image).resize(size, Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, extension: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    profile = image.info.get("icc_profile")
    if extension == "png":
        if image.mode.startswith("I;16"):
            image = Image.fromarray(np.asarray(image).astype(np.uint16))  # of whatever byte order
        elif image.mode not in ("L", "RGB", "RGBA"):
            image = _plain(image)
        image.save(buffer, "PNG", icc_profile=profile)
    elif extension == "webp":
        _plain(image).save(buffer, "WEBP", quality=quality, icc_profile=profile or b"")
    else:
        keeps_profile = profile if image.mode in ("RGB", "L", "RGBA", "P") else None  # a CMYK profile would be wrong
        as_rgb(image).save(buffer, "JPEG", quality=quality, optimize=True, icc_profile=keeps_profile)
    return buffer.getvalue()


def _plain(image: Image.Image) -> Image.Image:
    """``image`` in 8 bits: L, RGB or RGBA."""
    image = eight_bits(image)
    if image.mode in ("L", "RGB", "RGBA"):
        return image.convert("RGBA") if image.has_transparency_data else image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def as_rgb(image: Image.Image) -> Image.Image:
    """``image`` in RGB or L, transparency laid on white."""
    image = _plain(image)
    if image.mode != "RGBA":
        return image
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")
