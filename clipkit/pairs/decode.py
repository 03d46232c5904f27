"""Encoded pictures to uint8 tensors.

The fast path decodes JPEG with simplejpeg (libjpeg-turbo: bit for bit what torchvision decodes, in less time) and
resizes uint8 with antialiased bicubic; everything that it does not know (PNG, WebP, CMYK, palette, EXIF rotation, 16
bit, animations) goes through PIL and the same resize. The evaluation view of a model is described by a ``PictureSpec``.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from clipkit.errors import ClipkitError
from clipkit.pairs.vision import F

MAX_PIXELS = 178_956_970  # PIL's own bound: a larger picture is refused as a decompression bomb

_LOG_RATIO = math.log(4 / 3)
_THIN = 8  # times longer than wide before a picture is a strip

Decode = Literal["fast", "reference"]


@dataclass(frozen=True)
class PictureSpec:
    """What an image tower wants to see.

    Attributes:
        size: side of the square input in pixels.
        mean, std: per channel, of pixels scaled to [0, 1].
        resize: ``shortest`` (shorter side to ``size``, then the centre), ``squash`` (both sides to ``size``) or
            ``longest`` (longer side to ``size``, the rest filled).
        interpolation: ``bicubic`` or ``bilinear``.
        edge: length of the shorter side before the centre is cut out, for ``shortest``; default ``size``.
        fill: grey value (0-255) of what ``longest`` fills.
        reference: the tower's own library's preprocessing, PIL image -> float32 (3, size, size), for
            ``decode="reference"``; None uses PIL with the settings above.
    """

    size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    edge: int | None = None
    fill: int = 0
    reference: Callable[[Image.Image], Tensor] | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the function."""
        names = ("size", "mean", "std", "resize", "interpolation", "edge", "fill")
        return {n: list(v) if isinstance(v := getattr(self, n), tuple) else v for n in names}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PictureSpec:
        """The inverse of ``to_dict``."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)


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
            return torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
        except (ValueError, MemoryError):
            pass  # PIL says better what is wrong, and reads some that libjpeg-turbo warns of
    image = ImageOps.exif_transpose(open_picture(data, where))
    return F.pil_to_tensor(to_rgb(image))


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
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        # I and F do not say their range; 16 bits do, however dark the picture is
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def fit(image: Tensor, spec: PictureSpec) -> Tensor:
    """The evaluation view: uint8 (3, H, W) -> uint8 (3, size, size)."""
    height, width = image.shape[-2:]
    size = spec.size
    if spec.resize == "squash":
        return _resize(image, size, size, spec)
    new_height, new_width = _fitted(height, width, spec)
    if max(new_height, new_width) > _THIN * size:
        # A strip: all but its middle is cut away below, so cut before it is blown up to gigabytes.
        long = min(max(height, width), _THIN * min(height, width))
        image = F.center_crop(image, [min(height, long), min(width, long)])
        new_height, new_width = _fitted(image.shape[-2], image.shape[-1], spec)
    return F.center_crop(_pad(_resize(image, new_height, new_width, spec), size, spec.fill), [size, size])


def random_crop(image: Tensor, spec: PictureSpec, seed: int, scale: tuple[float, float]) -> Tensor:
    """A training view: a crop of ``scale`` of the area, aspect 3/4 to 4/3, resized to (3, size, size).

    The crop of torchvision's ``RandomResizedCrop`` (Szegedy et al. 2015), drawn from ``seed`` alone.
    """
    height, width = image.shape[-2:]
    draws = np.random.Generator(np.random.Philox(seed)).random(40).tolist()
    for share, shape, down, across in zip(*[iter(draws)] * 4, strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        ratio = math.exp(_LOG_RATIO * (2 * shape - 1))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(down * (height - crop_height + 1))
            left = int(across * (width - crop_width + 1))
            view = image[:, top : top + crop_height, left : left + crop_width]
            return _resize(view, spec.size, spec.size, spec)
    return fit(image, spec)


def shrink(image: Tensor, spec: PictureSpec, seed: int) -> Tensor:
    """The evaluation view as a tiny picture shows it: scaled down to 32-63 pixels, and up again."""
    side = 32 + seed % 32
    mode = F.InterpolationMode.BICUBIC
    small = F.resize(fit(image, spec), [side, side], interpolation=mode, antialias=True)
    return F.resize(small, [spec.size, spec.size], interpolation=mode, antialias=True)


def reference_pixels(image: Image.Image, spec: PictureSpec) -> Tensor:
    """float32 (3, size, size) exactly as the tower's own library would make it."""
    if spec.reference is not None:
        return spec.reference(image)
    bicubic = spec.interpolation == "bicubic"
    method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    width, height = image.size
    if spec.resize == "squash":
        image = image.convert("RGB").resize((spec.size, spec.size), method)
        return normalize(F.pil_to_tensor(image)[None], spec)[0]
    new_height, new_width = _fitted(height, width, spec)
    resized = image.convert("RGB").resize((new_width, new_height), method)
    pixels = _pad(F.pil_to_tensor(resized), spec.size, spec.fill)
    return normalize(F.center_crop(pixels, [spec.size, spec.size])[None], spec)[0]


def normalize(pixels: Tensor, spec: PictureSpec) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, scaled to [0, 1], less the mean, over the standard deviation."""
    mean = torch.tensor(spec.mean, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, device=pixels.device).view(1, -1, 1, 1)
    # In place, as each new tensor of a batch costs as much as the arithmetic on it.
    return pixels.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


def _fitted(height: int, width: int, spec: PictureSpec) -> tuple[int, int]:
    """Height and width of the whole picture when its shorter or longer side is ``spec.size``: as torchvision's
    ``Resize`` computes them for the shorter side (cut off), and open_clip's for the longer (rounded)."""
    if spec.resize == "shortest":
        edge, side = spec.edge or spec.size, min(height, width)
        return (
            edge if height == side else int(edge * height / side),
            edge if width == side else int(edge * width / side),
        )
    side = max(height, width)
    return max(1, round(height * spec.size / side)), max(1, round(width * spec.size / side))


def _resize(image: Tensor, height: int, width: int, spec: PictureSpec) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    if spec.interpolation == "bicubic":
        # What torchvision's resize comes to for bytes, without its detours: a third of the time for a crop.
        dense = image[None].contiguous(memory_format=torch.channels_last)
        return interpolate(dense, size=[height, width], mode="bicubic", antialias=True, align_corners=False)[0]
    return F.resize(image, [height, width], interpolation=F.InterpolationMode.BILINEAR, antialias=True)


def _pad(image: Tensor, size: int, fill: int) -> Tensor:
    """Filled on both sides up to ``size``, the odd pixel right and below."""
    missing = [max(0, size - n) for n in (image.shape[-1], image.shape[-2])]
    if not any(missing):
        return image
    left, top = (m // 2 for m in missing)
    return F.pad(image, [left, top, missing[0] - left, missing[1] - top], fill=float(fill))


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
