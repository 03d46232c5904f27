"""Is this a picture, and in which bytes do we keep it?"""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from clipkit.errors import ClipkitError

MAX_PIXELS = 89_478_485  # Pillow's own bound for a decompression bomb: a quarter of a gigabyte of RGB
KEPT = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
}  # MPO: a JPEG with further pictures behind it


def checked_image(data: bytes, verify: bool = True) -> tuple[bytes, str]:
    """The bytes to store for the picture in ``data``, and their file extension (``jpg``, ``png`` or
    ``webp``).

    JPEG, PNG and WebP stay byte for byte as they are. Everything else that Pillow reads becomes a PNG of the
    first frame, turned upright, in RGB (RGBA where something is transparent, 16-bit grey as it is).

    Args:
        data: an encoded picture.
        verify: decode it to see that it is whole. ``Image.verify`` reads checksums and headers only and does
            not notice a JPEG that was cut off, so all of the compressed data is decoded.

    Raises:
        ClipkitError: it is no picture, it is damaged, or it would unpack to more than ``MAX_PIXELS`` pixels.
    """
    if not data:
        raise ClipkitError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ClipkitError(f"{width} x {height} pixels: refused as a possible decompression bomb")
            extension = KEPT.get(image.format or "")
            if extension is None:
                return _as_png(image), "png"
            if verify:
                if extension == "jpg":
                    # An eighth of the size: every coded block is still read and Huffman-decoded, which is
                    # where damage shows; only the inverse transform, which cannot fail, is cut short.
                    image.draft(None, (max(1, width // 8), max(1, height // 8)))
                image.load()
            return data, extension
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


def _as_png(image: Image.Image) -> bytes:
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("L", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG")
    return buffer.getvalue()
