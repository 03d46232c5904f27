"""Training views are a function of the picture and the seed, and each setting does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.config import Config
from clipkit.errors import ClipkitError
from clipkit.pairs import Augment, PictureSpec, random_crop
from clipkit.settings import check_settings

SPEC = PictureSpec(size=32)
KINDS = {
    "flip": Augment(flip=0.5),
    "colour": Augment(colour=0.4),
    "rand": Augment(rand=9),
    "all": Augment((0.5, 1.0), 0.5, 0.4, 9),
}


@pytest.fixture(scope="module")
def image() -> Tensor:
    y, x = np.mgrid[:60, :70]
    return torch.from_numpy(np.stack([2 * x, 3 * y, x + y]).astype(np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_drawn_from_the_seed_alone(image: Tensor, kind: str) -> None:
    augment = KINDS[kind]
    torch.manual_seed(0)
    first = [augment(image, SPEC, seed) for seed in range(30)]
    state = torch.get_rng_state()
    again = [augment(image, SPEC, seed) for seed in reversed(range(30))][::-1]
    assert torch.equal(torch.get_rng_state(), state), "the global generator was moved"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(a.dtype == torch.uint8 and a.shape == (3, 32, 32) for a in first)
    assert len({a.numpy().tobytes() for a in first}) > 20


def test_nothing_but_the_crop_by_default(image: Tensor) -> None:
    for seed in range(10):
        assert torch.equal(Augment()(image, SPEC, seed), random_crop(image, SPEC, seed, (0.9, 1.0)))


def test_half_of_the_views_are_mirrored(image: Tensor) -> None:
    mirrored = 0
    for seed in range(200):
        plain, view = Augment()(image, SPEC, seed), Augment(flip=0.5)(image, SPEC, seed)
        mirrored += bool(torch.equal(view, plain.flip(-1)))
        assert torch.equal(view, plain) or torch.equal(view, plain.flip(-1))
    assert 70 < mirrored < 130
    assert torch.equal(Augment(flip=1.0)(image, SPEC, 3), Augment()(image, SPEC, 3).flip(-1))


def test_colours_change_and_places_do_not(image: Tensor) -> None:
    strengths = []
    for colour in (0.1, 0.8):
        far = [
            (Augment(colour=colour)(image, SPEC, s).float() - Augment()(image, SPEC, s).float()).abs().mean()
            for s in range(40)
        ]
        strengths.append(float(torch.stack(far).mean()))
    assert 0 < strengths[0] < strengths[1] / 2


def test_a_greater_magnitude_changes_more(image: Tensor) -> None:
    far = [
        np.mean([(Augment(rand=m)(image, SPEC, s).float() - Augment()(image, SPEC, s).float()).abs().mean().item()
                 for s in range(60)])
        for m in (2, 25)
    ]  # fmt: skip
    assert 0 < far[0] < far[1]


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"flip": 1.5}, "--flip"),
        ({"color_jitter": -0.1}, "--color-jitter"),
        ({"rand_augment": 31}, "--rand-augment"),
        ({"flip": 0.5, "augment": "none"}, "--augment crop"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], flag: str) -> None:
    check_settings(Config().replace(flip=0.5, color_jitter=0.4, rand_augment=9))
    with pytest.raises(ClipkitError, match=flag):
        check_settings(Config().replace(**settings))
