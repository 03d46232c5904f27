"""Views are those of the papers, drawn from a seed and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipkit.pairs.resize import PictureSpec
from clipkit.pairs.views import _CHANGES, FAMILIES, View, _blurred, _jittered, draw_views

SPEC = PictureSpec(size=32)


def image(seed: int = 0, size: int = 48) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, size, size), dtype=np.uint8)
    return F.gaussian_blur(torch.from_numpy(pixels), [9, 9], [3.0, 3.0])


def still(**changes: float) -> View:
    """A view that changes nothing but what ``changes`` says."""
    calm = {"flip": 0.0, "jitter_share": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0}
    return View((1.0, 1.0), **{**calm, **changes})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_two_views_are_a_function_of_the_seed(family: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw_views(image(), SPEC, 7, family)
    assert first.shape == (2, 3, 32, 32) and first.dtype == torch.uint8
    torch.manual_seed(99)
    assert torch.equal(first, draw_views(image(), SPEC, 7, family))
    assert not torch.equal(first[0], first[1]), "the two views of a picture differ"
    assert not torch.equal(first, draw_views(image(), SPEC, 8, family))
    torch.manual_seed(0)
    draw_views(image(), SPEC, 7, family)
    assert torch.equal(state, torch.get_rng_state()), "torch's own generator is left alone"


@pytest.mark.parametrize(
    ("what", "share"), [("flip", 0.5), ("grey", 0.2), ("blur", 0.3), ("solarize", 0.2), ("jitter_share", 0.8)]
)
def test_each_change_comes_as_often_as_it_should(what: str, share: float) -> None:
    picture = image()
    plain = still()
    view = still(**{what: share})
    n = 400
    # the crop is drawn from the seed too, and the same in both
    changed = sum(not torch.equal(view(picture, SPEC, s), plain(picture, SPEC, s)) for s in range(n))
    assert abs(changed / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_what_the_changes_are() -> None:
    picture = image()
    plain = still()(picture, SPEC, 3)
    assert torch.equal(still(flip=1.0)(picture, SPEC, 3), plain.flip(-1))
    grey = still(grey=1.0)(picture, SPEC, 3)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])
    luma = (plain.double() * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    assert (grey[0] - luma).abs().max() <= 1
    assert torch.equal(still(solarize=1.0)(picture, SPEC, 3), torch.where(plain >= 128, 255 - plain, plain))
    blurred = still(blur=1.0)(picture, SPEC, 3).double()
    assert blurred.diff(dim=-1).abs().mean() < plain.double().diff(dim=-1).abs().mean()


def test_strengths_are_bounded_by_the_paper() -> None:
    grey = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    means = torch.tensor([float(still(jitter_share=1.0)(grey, SPEC, s).double().mean()) for s in range(300)])
    assert 57 <= means.min() < 70 and 130 < means.max() <= 141, "brightness 1 +- 0.4, the rest leaves grey as it is"


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("size", [(32, 32), (5, 48), (1, 1)])
def test_each_change_of_colour_is_torchvisions(place: int, size: tuple[int, int]) -> None:
    theirs = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[place]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        picture = F.to_pil_image(torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)))
        for amount in (-0.5, -0.2, 0.0, 0.1, 0.5) if place == 3 else (0.0, 0.3, 1.0, float(rng.uniform(1, 2))):
            assert _CHANGES[place](picture, amount).tobytes() == theirs(picture, amount).tobytes(), (seed, amount)


def test_the_changes_of_colour_come_in_the_order_and_strength_that_are_drawn() -> None:
    orders = set()
    for seed in range(60):
        view = image(seed, 32)
        rng = np.random.default_rng(seed)
        wanted = F.to_pil_image(view)
        amounts = [rng.uniform(low, high) for low, high in ((0.2, 1.8), (0.6, 1.4), (0.0, 2.5), (-0.1, 0.1))]
        for place in (order := tuple(rng.permutation(4))):
            wanted = _CHANGES[place](wanted, amounts[place])
        orders.add(order)
        changed = _jittered(view, (0.8, 0.4, 1.5, 0.1), np.random.default_rng(seed))
        assert torch.equal(changed, F.pil_to_tensor(wanted)), seed
    assert len(orders) > 15


def test_the_families_are_those_of_the_papers() -> None:
    simclr, moco, byol = (FAMILIES[name] for name in ("simclr", "moco", "byol"))
    assert simclr[0] == simclr[1] == View((0.08, 1.0), 0.5, (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0.0)
    assert moco[0] == moco[1] == View((0.2, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0)
    assert (byol[0].blur, byol[0].solarize, byol[1].blur, byol[1].solarize) == (1.0, 0.0, 0.1, 0.2)
    assert byol[0].jitter == byol[1].jitter == (0.4, 0.4, 0.2, 0.1)
    assert FAMILIES["moco-small"] == (replace(moco[0], blur=0.0),) * 2
    assert FAMILIES["simclr-small"][0].blur == 0 and FAMILIES["simclr-small"][0].jitter == (0.4, 0.4, 0.4, 0.1)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_the_blur_is_a_gaussian(sigma: float) -> None:
    picture = image(size=64)
    blurred = _blurred(picture, 9, sigma)
    assert blurred.dtype == torch.uint8 and blurred.shape == picture.shape
    place = torch.arange(-4, 5, dtype=torch.float64)
    line = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    whole = torch.nn.functional.conv2d(picture[:, None].double(), kernel[None, None])[:, 0]
    assert (blurred[:, 4:-4, 4:-4] - whole).abs().max() < 0.51, "right but for the rounding to whole values"
