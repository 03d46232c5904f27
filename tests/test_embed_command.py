"""``clipkit embed``: a row of the array and a row of the table for every input that can be read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("own_cache")


def test_embed(cli: Cli, run: Path, table: Path, mistake: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    import clipkit

    model = clipkit.load(run, device="cpu")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    status, out, err = cli("embed", bad, table.parent, "--output", tmp_path / "pictures", "--model", run)
    assert status == 0 and "60 embeddings" in out
    assert err.startswith("clipkit: skipped") and "bad.png" in err and err.count("\n") == 1
    rows = np.load(tmp_path / "pictures.npy", mmap_mode="r", allow_pickle=False)
    named = pq.read_table(tmp_path / "pictures.parquet")
    assert named.column_names == ["row", "path", "content"] and named["row"].to_pylist() == list(range(60))
    paths = named["path"].to_pylist()
    assert rows.shape == (60, 24) and rows.dtype == np.float32 and str(bad) not in paths
    np.testing.assert_allclose(rows, model.encode_image(paths), atol=1e-5)
    hashes = [hashlib.blake2b(Path(p).read_bytes(), digest_size=16).hexdigest() for p in paths]
    assert named["content"].to_pylist() == hashes
    assert named.schema.metadata[b"model"] == str(run).encode()

    (tmp_path / "lines.txt").write_text("a bird\n\ntwo dogs\n")
    status, _, _ = cli("embed", tmp_path / "lines.txt", "--output", tmp_path / "texts", "--model", run)
    assert status == 0
    np.testing.assert_allclose(np.load(tmp_path / "texts.npy"), model.encode_text(["a bird", "two dogs"]), atol=1e-5)
    assert pq.read_table(tmp_path / "texts.parquet")["text"].to_pylist() == ["a bird", "two dogs"]

    (tmp_path / "worse.png").write_bytes(b"no picture")
    assert "none of 2 pictures" in mistake(
        "embed", bad, tmp_path / "worse.png", "--output", tmp_path / "none", "--model", run
    )
    assert not list(tmp_path.glob("*none*")), "nothing half stays"


def test_two_files_of_one_run(cli: Cli, run: Path, table: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """When the table cannot be written, the array stays what it was."""
    command = ("embed", table.parent / "001.png", "--output", tmp_path / "pictures", "--model", run)
    assert cli(*command)[0] == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    status, _, err = cli(*command[:1], table.parent / "002.png", *command[2:])
    assert status == 2 and "No space left" in err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert cli("embed", table, "--output", f"{tmp_path}/new/", "--model", run)[0] == 2
    assert not list(tmp_path.glob("*new*"))
