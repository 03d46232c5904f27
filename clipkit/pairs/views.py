"""Augmented views of one picture: the families of the papers, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
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
            view = F.horizontal_flip(view)
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
    return torch.stack([view(image, spec, _mixed(seed, place)) for place, view in enumerate(FAMILIES[family])])


def _mixed(seed: int, place: int) -> int:
    """A seed for each of a picture's views."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0])


def _jittered(view: Tensor, strengths: tuple[float, float, float, float], rng: np.random.Generator) -> Tensor:
    brightness, contrast, saturation, hue = strengths
    changes: list[tuple[Callable[[Any, float], Any], float]] = [
        (F.adjust_brightness, float(rng.uniform(max(0.0, 1 - brightness), 1 + brightness))),
        (F.adjust_contrast, float(rng.uniform(max(0.0, 1 - contrast), 1 + contrast))),
        (F.adjust_saturation, float(rng.uniform(max(0.0, 1 - saturation), 1 + saturation))),
        (F.adjust_hue, float(rng.uniform(-hue, hue))),
    ]
    # on PIL's picture, whose hue torchvision changes in a half to three quarters of the time that a tensor takes
    picture = F.to_pil_image(view)
    for place in rng.permutation(len(changes)):
        change, amount = changes[place]
        picture = change(picture, amount)
    return F.pil_to_tensor(picture)


def _blurred(view: Tensor, kernel: int, sigma: float) -> Tensor:
    """Along the rows, then along the columns: the same Gaussian for 2 k products a pixel instead of k squared."""
    sums = F.gaussian_blur(view.float(), [kernel, 1], [sigma, sigma])
    return F.gaussian_blur(sums, [1, kernel], [sigma, sigma]).round_().to(torch.uint8)
