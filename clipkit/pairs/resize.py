"""Decoded pictures as an image tower wants to see them, which a ``PictureSpec`` says: uint8, antialiased bicubic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from clipkit.pairs.vision import F

_LOG_RATIO = math.log(4 / 3)
_THIN = 8  # times longer than wide before a picture is a strip


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


def fit(image: Tensor, spec: PictureSpec) -> Tensor:
    """The evaluation view: uint8 (3, H, W) -> uint8 (3, size, size), in whatever order of memory it was made."""
    height, width = image.shape[-2:]
    size = spec.size
    if spec.resize == "squash":
        return _resize(image, size, size, spec)
    new_height, new_width = _fitted(height, width, spec)
    if max(new_height, new_width) > _THIN * size:
        # A strip: all but its middle is cut away below, so cut before it is blown up to gigabytes.
        long = min(max(height, width), _THIN * min(height, width))
        image = _centre(image, min(height, long), min(width, long))
        new_height, new_width = _fitted(image.shape[-2], image.shape[-1], spec)
    resized = _resize(image, new_height, new_width, spec)
    return _centre(_pad(resized, size, spec.fill), size, size)


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
    return normalize(_centre(pixels, spec.size, spec.size)[None], spec)[0]


def normalize(pixels: Tensor, spec: PictureSpec) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, scaled to [0, 1], less the mean, over the standard deviation; one channel lies
    behind the other in memory."""
    mean = torch.tensor(spec.mean, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, device=pixels.device).view(1, -1, 1, 1)
    # In place, as each new tensor of a batch costs as much as the arithmetic on it.
    floats = pixels.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return floats.div_(255).sub_(mean).div_(std)


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
        # What torchvision's resize comes to for bytes, without its detours: a third of the time for a crop. torch knows
        # pixels whose channels lie side by side by their strides, and by that of the only picture of a batch as well.
        dense = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
        return interpolate(dense, size=[height, width], mode="bicubic", antialias=True, align_corners=False)[0]
    return F.resize(image, [height, width], interpolation=F.InterpolationMode.BILINEAR, antialias=True)


def _centre(image: Tensor, height: int, width: int) -> Tensor:
    """What torchvision's ``center_crop`` cuts out of a picture at least as large, without its detours."""
    top, left = round((image.shape[-2] - height) / 2), round((image.shape[-1] - width) / 2)
    return torch.from_numpy(image.numpy()[:, top : top + height, left : left + width])


def _pad(image: Tensor, size: int, fill: int) -> Tensor:
    """Filled on both sides up to ``size``, the odd pixel right and below."""
    missing = [max(0, size - n) for n in (image.shape[-1], image.shape[-2])]
    if not any(missing):
        return image
    left, top = (m // 2 for m in missing)
    return F.pad(image, [left, top, missing[0] - left, missing[1] - top], fill=float(fill))
