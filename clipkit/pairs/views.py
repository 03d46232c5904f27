"""Augmented views of one picture: the families of the papers, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipkit.pairs.resize import PictureSpec, random_crop

Family = Literal["simclr", "simclr-small", "moco", "moco-small", "byol"]

_SIGMA = (0.1, 2.0)  # pixels: the width of the blur in all of them


@dataclass(frozen=True)
class View:
    """What one view changes, in this order.

    Attributes:
        scale: smallest and largest share of the picture's area in the crop (aspect 3/4 to 4/3).
        flip: probability of a mirrored view.
        jitter: strengths of brightness, contrast, saturation and hue; changed in random order.
        jitter_share: probability that they are changed at all.
        grey: probability of a grey view.
        blur: probability of a Gaussian blur, as wide as 0.1 to 2 pixels.
        solarize: probability that values from 128 on are inverted.
    """

    scale: tuple[float, float]
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_share: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    solarize: float = 0.0

    def __call__(self, image: Tensor, spec: PictureSpec, seed: int) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, size, size), a function of the picture and ``seed`` alone."""
        view = random_crop(image, spec, seed, self.scale)
        # another stream than the crop's, which starts from the seed itself
        rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
        flip, jitter, grey, blur, solarize = rng.random(5) < (
            self.flip,
            self.jitter_share,
            self.grey,
            self.blur,
            self.solarize,
        )
        if flip:
            view = view.flip(-1)
        if jitter and any(self.jitter):
            view = _jittered(view, self.jitter, rng)
        if grey:
            view = F.rgb_to_grayscale(view, num_output_channels=3)
        if blur:
            view = _blurred(view, max(3, spec.size // 10 | 1), float(rng.uniform(*_SIGMA)))  # a tenth, and odd
        return F.solarize(view, 128) if solarize else view


_SIMCLR = View((0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2))
_BYOL = View((0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=1.0)

FAMILIES: dict[str, tuple[View, View]] = {
    # Chen et al. 2020, appendix A, strength 1
    "simclr": (_SIMCLR, _SIMCLR),
    # the same, appendix B.9, for CIFAR-10: half the strength and no blur
    "simclr-small": (replace(_SIMCLR, jitter=(0.4, 0.4, 0.4, 0.1), blur=0.0),) * 2,
    # Chen et al. 2020 (MoCo v2), section 3
    "moco": (View((0.2, 1.0)),) * 2,
    # the same for small pictures, on which SimCLR's appendix B.9 leaves the blur out
    "moco-small": (View((0.2, 1.0), blur=0.0),) * 2,
    # Grill et al. 2020, appendix B, table 6: the two views are drawn differently
    "byol": (_BYOL, replace(_BYOL, blur=0.1, solarize=0.2)),
}


def draw_views(image: Tensor, spec: PictureSpec, seed: int, family: Family) -> Tensor:
    """Two views of a picture, uint8 (3, H, W) -> uint8 (2, 3, size, size), drawn from ``seed``."""
    return stacked([view(image, spec, _mixed(seed, place)) for place, view in enumerate(FAMILIES[family])])


def stacked(views: Sequence[Tensor]) -> Tensor:
    """Pictures of one size in one tensor, by numpy: torch takes ten times as long where channels lie side by side."""
    return torch.from_numpy(np.stack([view.numpy() for view in views]))


def _mixed(seed: int, place: int) -> int:
    """A seed for each of a picture's views."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0])


def _jittered(view: Tensor, strengths: tuple[float, float, float, float], rng: np.random.Generator) -> Tensor:
    """The bytes of torchvision's ``ColorJitter`` on PIL's picture, by PIL itself: torchvision's own calls take longer
    than the work on a small picture."""
    brightness, contrast, saturation, hue = strengths
    bounds = [(max(0.0, 1 - s), 1 + s) for s in (brightness, contrast, saturation)] + [(-hue, hue)]
    amounts = [low + (high - low) * draw for (low, high), draw in zip(bounds, rng.random(4).tolist(), strict=True)]
    height, width = view.shape[-2:]
    picture = Image.frombytes("RGB", (width, height), view.permute(1, 2, 0).numpy().tobytes())
    for place in rng.permutation(4).tolist():
        picture = _CHANGES[place](picture, amounts[place])
    pixels = np.frombuffer(bytearray(picture.tobytes()), np.uint8).reshape(height, width, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _brightness(picture: Image.Image, amount: float) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(amount)


def _contrast(picture: Image.Image, amount: float) -> Image.Image:
    # ImageEnhance.Contrast counts the mean in Python, value by value
    mean = int(float(np.dot(picture.convert("L").histogram(), _VALUES)) / (picture.width * picture.height) + 0.5)
    return Image.blend(Image.new("RGB", picture.size, (mean,) * 3), picture, amount)


def _saturation(picture: Image.Image, amount: float) -> Image.Image:
    return ImageEnhance.Color(picture).enhance(amount)


def _hue(picture: Image.Image, amount: float) -> Image.Image:
    """The hue moved on by ``amount`` turns, in 255ths as torchvision counts them."""
    pixels = np.frombuffer(bytearray(picture.convert("HSV").tobytes()), np.uint8).reshape(-1, 3)
    pixels[:, 0] += np.uint8(int(amount * 255) % 256)
    return Image.frombytes("HSV", picture.size, pixels.tobytes()).convert("RGB")


_VALUES = np.arange(256)
_CHANGES = (_brightness, _contrast, _saturation, _hue)


def _blurred(view: Tensor, kernel: int, sigma: float) -> Tensor:
    """Along the rows, then along the columns: the same Gaussian for 2 k products a pixel instead of k squared."""
    sums = F.gaussian_blur(view.float(), [kernel, 1], [sigma, sigma])
    return F.gaussian_blur(sums, [1, kernel], [sigma, sigma]).round_().to(torch.uint8)
