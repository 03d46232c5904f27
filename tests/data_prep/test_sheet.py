"""The contact sheet shows the pictures upright, whatever their EXIF is worth."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from data_prep_helpers import DAMAGED_EXIF
from PIL import Image

from data_prep import Record, write_shards
from data_prep.sheet import contact_sheet


def test_a_picture_with_a_damaged_exif_block_is_shown_upright(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (120, 80), "red")
    image.paste("blue", (0, 0, 60, 80))
    image.save(buffer, "JPEG", exif=DAMAGED_EXIF)
    write_shards([Record("a", buffer.getvalue(), ("a caption",))], tmp_path / "out")
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([tmp_path / "out" / "train" / "000000.tar"]))), int)
    rows = [np.median(np.nonzero(sheet[..., channel] > sheet[..., 1] + 100)[0]) for channel in (0, 2)]
    assert rows[1] < rows[0] - 30, "blue above red"
