"""What a path is, and what is said of one that is no source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clipkit.errors import ClipkitError
from data_prep.sources import read_source


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "A.TAR.ZST", "folder"])
def test_compressed_tars_are_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    (path / "b.tar.xz" if name == "folder" else path).write_bytes(b"\x1f\x8b")
    named = re.escape(str(path / "b.tar.xz" if name == "folder" else path))
    with pytest.raises(ClipkitError, match=rf"^{named}: a compressed tar.* unpack it \(gunzip"):
        read_source(path)
