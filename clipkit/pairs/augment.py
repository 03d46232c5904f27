"""Training views: a random crop, and if wanted a flip, other colours, RandAugment; all drawn from the sample's seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from clipkit.pairs.resize import PictureSpec, random_crop

_OPS = 2  # operations of a RandAugment, as in its paper


@dataclass(frozen=True)
class Augment:
    """What a training view may change.

    Attributes:
        scale: smallest and largest share of the picture's area in the crop.
        flip: share of the views that are mirrored. Captions tell left from right, so it is off for text pairs.
        colour: strength of the change of brightness, contrast and saturation (up to 1 +- colour) and of the hue
            (up to a quarter of it); 0 for none.
        rand: magnitude (0-30) of two operations of RandAugment (Cubuk et al. 2020) on every view; 0 for none.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    flip: float = 0.0
    colour: float = 0.0
    rand: int = 0

    def __call__(self, image: Tensor, spec: PictureSpec, seed: int) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, size, size), a function of the picture and ``seed`` alone."""
        view = random_crop(image, spec, seed, self.scale)
        if not (self.flip or self.colour or self.rand):
            return view
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator, which stays as it was
            torch.manual_seed(seed)
            if self.flip and torch.rand(()) < self.flip:
                view = F.horizontal_flip(view)
            if self.colour:
                view = _jitter(self.colour)(view)
            if self.rand:
                view = _rand_augment(self.rand)(view)
        return view


@lru_cache(maxsize=8)
def _jitter(strength: float) -> v2.ColorJitter:
    return v2.ColorJitter(strength, strength, strength, min(0.5, strength / 4))


@lru_cache(maxsize=8)
def _rand_augment(magnitude: int) -> v2.RandAugment:
    return v2.RandAugment(_OPS, magnitude, interpolation=v2.InterpolationMode.BILINEAR)
