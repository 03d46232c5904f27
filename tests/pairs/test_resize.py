"""Views of decoded pictures against open_clip's own preprocessing and torchvision's resize."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from photos import distance, encoded, photo
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipkit.pairs import PictureSpec, decode_image, fit, normalize, random_crop, reference_pixels
from clipkit.pairs.resize import _centre

SPECS = [
    PictureSpec(size=64),
    PictureSpec(size=64, resize="squash", interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
    PictureSpec(size=64, resize="longest", fill=114),
    PictureSpec(size=64, interpolation="bilinear"),
]
SIZES = [
    (500, 375),
    (375, 500),
    (64, 64),
    (333, 101),
    (101, 333),
    (30, 50),
    (64, 200),
    (65, 64),
    (257, 193),
    (300, 200),
    (200, 299),
]


def open_clip_transform(spec: PictureSpec) -> Callable[[Image.Image], Tensor]:
    from open_clip.transform import image_transform

    return image_transform(
        spec.size, is_train=False, mean=spec.mean, std=spec.std, resize_mode=spec.resize,
        interpolation=spec.interpolation, fill_color=spec.fill,
    )  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.resize}-{s.interpolation}")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_fast_view_is_close_to_open_clips(spec: PictureSpec, size: tuple[int, int]) -> None:
    """No pixel off by more than 3 of 255 (decoder and resize together), 0.5 on average: JPEG, then PNG."""
    image = photo(*size, seed=sum(size))
    std = torch.tensor(spec.std).view(3, 1, 1)
    for format in ("JPEG", "PNG"):
        data = encoded(image, format)
        theirs = open_clip_transform(spec)(Image.open(io.BytesIO(data)))
        view = fit(decode_image(data), spec)
        assert view.dtype == torch.uint8 and view.shape == (3, 64, 64)
        ours = normalize(view[None], spec)[0]
        assert ours.dtype == torch.float32
        largest, mean = distance(ours * std * 255, theirs * std * 255)
        assert largest <= 3 and mean <= 0.5


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.resize}-{s.interpolation}")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_reference_without_a_library_is_pils(spec: PictureSpec, size: tuple[int, int]) -> None:
    image = photo(*size, seed=sum(size))
    ours, theirs = reference_pixels(image, spec), open_clip_transform(spec)(image)
    assert ours.dtype == torch.float32 and ours.shape == (3, 64, 64)
    assert distance(ours, theirs)[0] < 1e-5


def test_a_towers_own_reference_is_used() -> None:
    spec = PictureSpec(size=8, reference=lambda image: torch.full((3, 8, 8), float(image.width)))
    assert torch.equal(reference_pixels(photo(20, 10), spec), torch.full((3, 8, 8), 20.0))


def test_normalize() -> None:
    spec = PictureSpec(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    got = normalize(pixels, spec)
    assert got.dtype == torch.float32
    assert got[:, :, 0, 0].tolist() == [[0.0, -1.0, -0.5], [1.0, 1.0, 0.0]]


@pytest.mark.parametrize("size", [*SIZES, (1000, 700)], ids=str)
def test_the_resize_is_torchvisions(size: tuple[int, int]) -> None:
    """Bit for bit, of whole pictures and of crops, which are no dense tensors."""
    image = decode_image(encoded(photo(*size), "JPEG"))
    spec = PictureSpec(size=64, resize="squash")
    bicubic = F.InterpolationMode.BICUBIC
    for part in (image, image.contiguous(), image[:, 3:-2, 1:-5]):
        assert torch.equal(fit(part, spec), F.resize(part, [64, 64], interpolation=bicubic, antialias=True))
        for view in (fit(part, spec), fit(part, PictureSpec(size=64)), random_crop(part, spec, 1, (0.5, 1.0))):
            pixels = normalize(view[None], spec)
            assert pixels.is_contiguous(), "channel after channel, as a tower reads them"
            assert torch.equal(pixels, normalize(view.contiguous()[None], spec))


@pytest.mark.parametrize("height", range(64, 72))
def test_the_centre_is_torchvisions(height: int) -> None:
    """Odd and even margins; halves are rounded as torchvision rounds them."""
    pixels = torch.arange(3 * height * 67).remainder(251).to(torch.uint8).view(3, height, 67)
    assert torch.equal(_centre(pixels, 64, 64), F.center_crop(pixels, [64, 64]))


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_thin_pictures_are_not_blown_up(resize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip of 1 x 20,000 pixels must not become one of 224 x 4,480,000 before its centre is cut out."""
    from clipkit.pairs import resize as module

    asked: list[int] = []
    resize_really = module.interpolate

    def resize_spy(image: Tensor, size: list[int], **options: object) -> Tensor:
        asked.append(size[0] * size[1])
        if asked[-1] > 10_000_000:
            return torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
        return resize_really(image, size, **options)

    monkeypatch.setattr(module, "interpolate", resize_spy)
    spec = PictureSpec(size=224, resize=resize)  # type: ignore[arg-type]
    for shape in ((3, 1, 20_000), (3, 20_000, 1)):
        image = torch.zeros(shape, dtype=torch.uint8)
        assert fit(image, spec).shape == (3, 224, 224)
        assert random_crop(image, spec, seed=1, scale=(0.9, 1.0)).shape == (3, 224, 224)
    assert max(asked) <= 10_000_000


def test_random_crops_are_drawn_from_the_seed_alone() -> None:
    image, spec = F.pil_to_tensor(photo(90, 60)), PictureSpec(size=32)
    torch.manual_seed(0)
    first = [random_crop(image, spec, seed, (0.4, 1.0)) for seed in range(20)]
    torch.manual_seed(1)
    np.random.seed(3)
    again = [random_crop(image, spec, seed, (0.4, 1.0)) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.numpy().tobytes() for a in first}) == 20
    assert all(a.shape == (3, 32, 32) and a.dtype == torch.uint8 for a in first)


def test_random_crops_keep_to_their_scale() -> None:
    """A picture whose channels hold x and y shows which part was cut out."""
    height, width = 120, 160
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image, spec = torch.stack([x, y, x]).to(torch.uint8), PictureSpec(size=32, interpolation="bilinear")
    lefts = []
    for seed in range(200):
        crop = random_crop(image, spec, seed, (0.3, 0.5)).float()
        crop_width = float(crop[0, :, -1].mean() - crop[0, :, 0].mean()) * 32 / 31
        crop_height = float(crop[1, -1].mean() - crop[1, 0].mean()) * 32 / 31
        assert 0.26 < crop_width * crop_height / (width * height) < 0.54
        assert 0.68 < crop_width / crop_height < 1.48
        lefts.append(float(crop[0, :, 0].mean()))
    assert min(lefts) < 10 and max(lefts) > 50
