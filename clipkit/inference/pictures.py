"""Whatever people call a picture, to the tensor that the image tower wants."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.pairs import PictureSpec, decode_image, fit, normalize, reference_pixels
from clipkit.pairs.decode import Decode, open_picture, to_rgb
from clipkit.pairs.pillow import too_large, upright
from clipkit.pairs.vision import F

MAX_DOWNLOAD = 64 << 20  # bytes of a picture fetched by URL


def is_single(images: Any) -> bool:
    """Whether ``images`` is one picture and not a sequence of them."""
    if isinstance(images, (str, Path, Image.Image)):
        return True
    return isinstance(images, (np.ndarray, Tensor)) and images.ndim <= 3


def as_list(images: Any) -> list[Any]:
    """One picture or many, as a list.

    Raises:
        ClipkitError: neither.
    """
    if is_single(images):
        return [images]
    if isinstance(images, (np.ndarray, Tensor, Sequence)) or hasattr(images, "__iter__"):
        return list(images)
    raise ClipkitError(f"{type(images).__name__} is no picture: give a path, a PIL image, an array, or a list of these")


def to_pixels(image: Any, spec: PictureSpec, decode: Decode, allow_urls: bool) -> Tensor:
    """float32 (3, size, size), preprocessed.

    Args:
        image: path, PIL image, uint8 array (H, W, 3), (H, W) or (3, H, W), or floating array (3, size, size) that is
            preprocessed already and taken as it is.
        decode: ``fast``, or ``reference`` for the tower's own library's preprocessing.
        allow_urls: fetch http and https addresses.

    Raises:
        ClipkitError: a picture that cannot be read, named.
    """
    if isinstance(image, (np.ndarray, Tensor)):
        if isinstance(image, np.ndarray):
            if image.dtype.kind not in "uif":
                raise ClipkitError(f"an array of {image.dtype} is no picture; give uint8 (0-255)")
            image = np.ascontiguousarray(image)  # BGR turned by [..., ::-1] has negative strides
        tensor = torch.as_tensor(image)
        if tensor.is_floating_point():
            if tensor.shape != (3, spec.size, spec.size):
                raise ClipkitError(
                    f"a floating array is taken as preprocessed pixels (3, {spec.size}, {spec.size}), this one is "
                    f"{tuple(tensor.shape)}; give uint8 (H, W, 3) for a picture"
                )
            return tensor.float().cpu()
        image = _picture_array(tensor)
        if decode == "fast":
            return normalize(fit(image, spec)[None], spec)[0]
        return reference_pixels(F.to_pil_image(image), spec)
    if isinstance(image, Image.Image):
        if decode == "reference":
            return reference_pixels(image, spec)
        return normalize(fit(F.pil_to_tensor(to_rgb(upright(image))), spec)[None], spec)[0]
    if not isinstance(image, (str, Path)):
        raise ClipkitError(f"{type(image).__name__} is no picture: give a path, a PIL image or an array")
    data, where = _read(image, allow_urls), str(image)
    if decode == "reference":
        return reference_pixels(open_picture(data, where), spec)
    return encoded_pixels(data, where, spec)


def read_file(path: Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        OSError: it cannot be read.
        ClipkitError: it is too large.
    """
    if reason := too_large(path):
        raise ClipkitError(f"{path}: {reason}")
    return path.read_bytes()


def encoded_pixels(data: bytes, where: str, spec: PictureSpec) -> Tensor:
    """``to_pixels`` of an encoded picture that messages call ``where``."""
    return normalize(fit(decode_image(data, where), spec)[None], spec)[0]


def _picture_array(tensor: Tensor) -> Tensor:
    """uint8 (3, H, W) of a uint8 array in any usual layout."""
    if tensor.dtype != torch.uint8:
        raise ClipkitError(f"an array of {tensor.dtype} is no picture; give uint8 (0-255)")
    if tensor.ndim == 2:
        return tensor[None].expand(3, -1, -1)
    if tensor.ndim == 3 and tensor.shape[-1] in (1, 3, 4):
        tensor = tensor.permute(2, 0, 1)
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or 0 in tensor.shape:
        raise ClipkitError(f"an array of shape {tuple(tensor.shape)} is no picture; give (H, W, 3) or (3, H, W)")
    if tensor.shape[0] == 4:
        return F.pil_to_tensor(to_rgb(F.to_pil_image(tensor)))
    return tensor.expand(3, -1, -1).contiguous()


def _read(image: str | Path, allow_urls: bool) -> bytes:
    text = str(image)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        if not allow_urls:
            raise ClipkitError(f"{text}: addresses are not fetched unless you ask for it: pass allow_urls=True")
        if not text.lower().startswith(("http://", "https://")):
            raise ClipkitError(f"{text}: only http and https addresses can be fetched")
        try:
            with urllib.request.urlopen(text, timeout=30) as response:
                data = response.read(MAX_DOWNLOAD + 1)
        except (OSError, ValueError, HTTPException) as error:
            raise ClipkitError(f"{text}: could not be fetched ({error})") from None
        if len(data) > MAX_DOWNLOAD:
            raise ClipkitError(f"{text}: more than {MAX_DOWNLOAD >> 20} MiB")
        return data
    try:
        return read_file(Path(text))
    except IsADirectoryError:
        raise ClipkitError(f"{text}: a folder, not a picture; list its files") from None
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise ClipkitError(f"{text}: {'no such file' if missing else error.strerror}") from None


def thumbnail(data: bytes, side: int = 256) -> Image.Image:
    """A small RGB picture for a page."""
    image = to_rgb(upright(open_picture(data, "picture")))
    image.thumbnail((side, side))
    return image
