"""Decoded pictures against PIL and torchvision; what cannot be decoded is refused in one line."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from photos import distance, encoded, photo
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipkit.errors import ClipkitError
from clipkit.pairs import decode_image
from clipkit.pairs.decode import open_picture


def by_pil(data: bytes) -> Tensor:
    return F.pil_to_tensor(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def message(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ClipkitError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}, {"optimize": True}]
)
def test_jpeg_is_as_pil_has_it(options: dict[str, object]) -> None:
    for size in ((500, 375), (33, 57), (8, 8), (1, 1)):
        data = encoded(photo(*size), "JPEG", **options)
        got = decode_image(data)
        assert got.dtype == torch.uint8 and got.shape == (3, size[1], size[0])
        assert distance(got, by_pil(data))[0] <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_colours(mode: str) -> None:
    data = encoded(photo(64, 48).convert(mode), "JPEG", quality=95)
    assert distance(decode_image(data), by_pil(data))[0] <= 2


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_are_exact(format: str) -> None:
    data = encoded(photo(64, 48), format, **({"lossless": True} if format == "WEBP" else {}))
    assert torch.equal(decode_image(data), by_pil(data))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LAB"])
def test_modes_without_transparency(mode: str) -> None:
    format = "TIFF" if mode in ("CMYK", "LAB") else "PNG"
    data = encoded(photo(40, 30).convert(mode), format)
    assert torch.equal(decode_image(data), by_pil(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_as_their_exif_says(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker's name that is long enough to be stored elsewhere"
    exif[0x0112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    upright = encoded(photo(60, 40), format, **options)
    data = encoded(photo(60, 40), format, exif=exif.tobytes(), **options)
    got = decode_image(data)
    assert got.shape == ((3, 40, 60) if orientation < 5 else (3, 60, 40))
    assert distance(got, by_pil(data))[0] <= 2
    assert (distance(got, by_pil(upright))[1] < 1 if got.shape[1] == 40 else False) == (orientation == 1)


def test_exif_of_either_byte_order() -> None:
    data = encoded(photo(60, 40), "JPEG")
    for mark, order in ((b"II*\0", "<"), (b"MM\0*", ">")):
        entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
        tiff = mark + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)
        block = b"Exif\0\0" + tiff
        turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
        assert decode_image(turned).shape == (3, 60, 40)
        for cut in (7, 10, 20, 25):  # a damaged EXIF block does no harm
            short = b"Exif\0\0" + tiff[:cut]
            decode_image(data[:2] + b"\xff\xe1" + struct.pack(">H", len(short) + 2) + short + data[2:])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 0), (0, 0, 200, 255)])
    options = {}
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        colours = Image.new("P", (4, 1))
        colours.putpalette([200, 0, 0, 1, 2, 3, 0, 0, 200])
        colours.putdata([0, 1, 1, 2])
        image, options = colours, {"transparency": 1}
    elif mode in ("RGB", "L"):
        flat = Image.new(mode, (4, 1))
        flat.putdata([(200, 0, 0), (9, 9, 9), (9, 9, 9), (0, 0, 200)] if mode == "RGB" else [60, 9, 9, 23])
        image, options = flat, {"transparency": (9, 9, 9) if mode == "RGB" else 9}
    got = decode_image(encoded(image, "PNG", **options))
    assert got[:, 0, 1].tolist() == got[:, 0, 2].tolist() == [255, 255, 255]
    if mode in ("RGBA", "P", "RGB"):
        assert got[:, 0, 0].tolist() == [200, 0, 0] and got[:, 0, 3].tolist() == [0, 0, 200]


def test_half_transparency_blends_with_white() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (100, 0, 0, 128)), "PNG")
    expected = torch.tensor([255 - 155 * 128 / 255, 127, 127])
    assert (decode_image(data)[:, 0, 0].float() - expected).abs().max() <= 1


@pytest.mark.parametrize("top", [65535, 40_000, 200])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_by_their_range(top: int, format: str) -> None:
    """A dark picture stays dark: the scale is that of 16 bits, not of the brightest pixel."""
    values = np.linspace(0, top, 64, dtype=np.uint16).reshape(8, 8)
    got = decode_image(encoded(Image.fromarray(values), format))
    expected = torch.tensor((values / 257).astype(np.float32)).expand(3, 8, 8)
    assert distance(got, expected)[0] <= 1


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_floating_grey_is_scaled_by_the_range_it_probably_has(top: int) -> None:
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    got = decode_image(encoded(Image.fromarray(values), "TIFF"))
    assert distance(got, torch.tensor(values / top * 255).expand(3, 8, 8))[0] <= 1


def test_an_animation_gives_its_first_frame() -> None:
    frames = [photo(20, 20, n) for n in range(3)]
    for format in ("GIF", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data).shape == (3, 20, 20)
        assert distance(decode_image(data), by_pil(encoded(frames[0], format, **options)))[1] < 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_pictures_are_refused(format: str) -> None:
    data = encoded(photo(200, 150), format)
    for share in (0.02, 0.3, 0.6, 0.9):
        assert "a.tar/k.jpg" in message(decode_image, data[: int(len(data) * share)], "a.tar/k.jpg")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"no picture at all" * 50, b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x10JFIF"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    said = message(decode_image, data, "a.tar/k.jpg")
    assert said.startswith("a.tar/k.jpg: ")


def test_damaged_pictures_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        good = encoded(photo(40, 30), format)
        for _ in range(40):
            data = bytearray(good)
            for at in rng.integers(0, len(data), 3):
                data[at] = rng.integers(0, 256)
            try:
                got = decode_image(bytes(data), "k")
                assert got.dtype == torch.uint8 and got.shape[0] == 3
            except ClipkitError as error:
                assert str(error).startswith("k: ")


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def huge_jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded(photo(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("size", [(15_000, 15_000), (65_000, 65_000)])
@pytest.mark.parametrize("make", [huge_png, huge_jpeg])
def test_huge_pictures_are_refused_before_anything_is_allocated(
    make: Callable[[int, int], bytes], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import clipkit.pairs.decode as module

    data = make(*size)
    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", lambda *a, **k: pytest.fail("the picture was decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the picture was loaded"))
    tracemalloc.start()
    try:
        said = message(decode_image, data, "a.tar/k.png")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert "a.tar/k.png" in said and "pixels" in said


def test_a_picture_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    photo(20, 10).save(path)
    assert open_picture(path, "a.png").size == (20, 10)
    assert "b.png" in message(open_picture, tmp_path / "b.png", "b.png")
    (tmp_path / "c.png").write_bytes(b"")
    assert "c.png" in message(open_picture, tmp_path / "c.png", "c.png")


@pytest.mark.parametrize("quality", [40, 95])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_fast_decoder_is_torchvisions_bit_for_bit(quality: int, subsampling: int) -> None:
    pixels = torch.randint(0, 256, (3, 12, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(quality))
    picture = F.to_pil_image(F.resize(pixels, [97, 133]))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
    expected = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    assert torch.equal(decode_image(file.getvalue()), expected)
