"""``clipkit match``: what it prints and writes."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import draw

Cli = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("own_cache")


def test_match(cli: Cli, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in ("red", "blue", "green"):
        draw(colour, "plain").save(folder / f"{colour}.png")
    (tmp_path / "captions.txt").write_text("a green plain\na red plain\na blue plain\na pink top\n")
    status, out, err = cli("match", folder, tmp_path / "captions.txt", "--model", run)
    rows = list(csv.DictReader(out.splitlines()))
    assert status == 0 and err == "" and len(rows) == 3
    assert {Path(r["picture"]).stem for r in rows} == {"red", "blue", "green"}
    assigned = [r["assigned_caption"] for r in rows]
    assert len(set(assigned)) == 3 and all(-1 <= float(r["score"]) <= 1 for r in rows)
    assert sum(Path(r["picture"]).stem in r["assigned_caption"] for r in rows) >= 2
    status, out, _ = cli("match", folder, tmp_path / "captions.txt", "--model", run, "--output", tmp_path / "m.csv")
    assert status == 0 and list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines())) == rows
    page = tmp_path / "m.html"
    status, out, err = cli("match", folder, tmp_path / "captions.txt", "--model", run, "--html", page)
    assert status == 0 and err == "" and out == f"3 pictures and 4 captions matched: {page}\n"
    html = page.read_text(encoding="utf-8")
    assert html.count('<img src="data:image/webp;base64,') == 3 and ">red.png<" in html and str(folder) not in html
    for row in rows:
        assert f"{row['best_caption']} ({float(row['score']):.3f})" in html
    (folder / "broken.png").write_bytes(b"no picture")
    status, out, err = cli("match", folder, tmp_path / "captions.txt", "--model", run)
    assert status == 0 and list(csv.DictReader(out.splitlines())) == rows, "the others are matched all the same"
    assert err.startswith("clipkit: skipped") and "broken.png" in err and err.count("\n") == 1
