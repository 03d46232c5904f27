"""What is stored: the picture as it was, or smaller, upright and in the format that was asked for."""

from __future__ import annotations

import io

import numpy as np
import pytest
from data_prep_helpers import DAMAGED_EXIF, picture
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.pairs.decode import to_rgb
from data_prep.images import Encoding, checked_picture
from data_prep.looks import look_of


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def smooth(size: tuple[int, int], format: str = "PNG", **options: object) -> bytes:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, 255 - x], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "stored"), [((300, 200), (150, 100)), ((200, 300), (100, 150)), ((90, 500), (90, 500))]
)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_shorter_side_shrinks_and_never_grows(size: tuple[int, int], stored: tuple[int, int], format: str) -> None:
    data = smooth(size, format)
    made = checked_picture(data, Encoding(max_side=100))
    assert made.size == stored == opened(made.data).size
    assert made.source_size == size
    assert (made.data == data) == (size == stored)
    small = np.asarray(opened(made.data).convert("RGB"), float)
    expected = np.asarray(opened(smooth(stored)), float)
    assert np.abs(small - expected).mean() < 4


@pytest.mark.parametrize(("wanted", "extension"), [("jpeg", "jpg"), ("webp", "webp")])
def test_formats(wanted: str, extension: str) -> None:
    low = checked_picture(smooth((64, 48)), Encoding(format=wanted, quality=20))  # type: ignore[arg-type]
    high = checked_picture(smooth((64, 48)), Encoding(format=wanted, quality=95))  # type: ignore[arg-type]
    assert low.extension == high.extension == extension and len(low.data) < len(high.data)
    already = smooth((64, 48), "JPEG" if wanted == "jpeg" else "WEBP")
    assert checked_picture(already, Encoding(format=wanted)).data == already  # type: ignore[arg-type]


def test_what_is_encoded_anew_is_upright_and_says_nothing_of_the_photographer() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "my garden"  # turned by a quarter; a description
    data = smooth((120, 80), "JPEG", exif=exif)
    made = checked_picture(data, Encoding(max_side=40))
    assert made.size == (40, 60) and b"my garden" in data and b"my garden" not in made.data
    assert not opened(made.data).getexif()


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(max_side=40), Encoding(format="webp")])
def test_a_damaged_exif_block_costs_no_picture(encoding: Encoding) -> None:
    made, plain = (
        checked_picture(smooth((120, 80), "JPEG", exif=exif), encoding, with_look=True)
        for exif in (DAMAGED_EXIF, b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0")
    )
    assert made.look == plain.look and made.size == plain.size
    assert np.array_equal(opened(made.data), opened(plain.data))


def test_transparency_becomes_white_and_16_bits_become_8() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(buffer, "PNG")
    made = opened(checked_picture(buffer.getvalue(), Encoding(format="jpeg")).data)
    assert made.mode == "RGB" and np.asarray(made).min() > 250
    buffer = io.BytesIO()
    Image.fromarray(np.full((50, 50), 32768, np.uint16)).save(buffer, "PNG")
    made = opened(checked_picture(buffer.getvalue(), Encoding(max_side=20, format="jpeg")).data)
    assert made.size == (20, 20) and abs(int(np.asarray(made).mean()) - 127) <= 2
    cmyk = opened(checked_picture(picture(3, (60, 60), mode="CMYK"), Encoding(max_side=30)).data)
    assert cmyk.mode == "RGB" and cmyk.size == (30, 30)


GREYS = {
    "I;16": np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30,
    "I;16B": (np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30).astype(">u2"),
    "I": np.arange(48 * 40, dtype=np.int32).reshape(40, 48) * 30,
    "F": np.arange(48 * 40, dtype=np.float32).reshape(40, 48) / 2000,
}


def grey_tiff(mode: str, flipped: bool = False) -> bytes:
    values = GREYS[mode][::-1] if flipped else GREYS[mode]
    buffer = io.BytesIO()
    Image.frombytes(mode, values.shape[::-1], values.tobytes()).save(buffer, "TIFF")
    assert opened(buffer.getvalue()).mode == mode
    return buffer.getvalue()


@pytest.mark.parametrize("mode", GREYS)
def test_grey_of_many_bits_is_stored_as_training_sees_it(mode: str) -> None:
    data = grey_tiff(mode)
    made = checked_picture(data)
    assert np.array_equal(to_rgb(opened(made.data)), to_rgb(opened(data)))
    assert len(np.unique(to_rgb(opened(data)))) > 200
    if mode.startswith("I;16"):
        assert np.array_equal(opened(made.data), GREYS[mode])


@pytest.mark.parametrize("mode", GREYS)
def test_pictures_of_grey_of_many_bits_look_as_different_as_in_eight(mode: str) -> None:
    look, other = (checked_picture(grey_tiff(mode, flipped), with_look=True).look for flipped in (False, True))
    assert look == look_of(to_rgb(opened(grey_tiff(mode)))) and look != other


def test_options_are_checked() -> None:
    for bad in ({"max_side": 0}, {"quality": 0}, {"quality": 101}, {"format": "gif"}):
        with pytest.raises(ClipkitError, match=f"--{next(iter(bad)).replace('_', '-')} "):
            Encoding(**bad)  # type: ignore[arg-type]


def test_pictures_that_training_reads_are_taken_and_larger_ones_are_not() -> None:
    from clipkit.pairs.decode import MAX_PIXELS

    def blank(width: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("1", (width, 12_000)).save(buffer, "PNG")
        return buffer.getvalue()

    assert checked_picture(blank(8_000), verify=False).size == (8_000, 12_000)
    with pytest.raises(ClipkitError, match="decompression bomb"):
        checked_picture(blank(MAX_PIXELS // 12_000 + 1), verify=False)
