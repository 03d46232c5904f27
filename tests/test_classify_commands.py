"""``clipkit classify`` and ``clipkit calibrate``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import draw

Cli = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("own_cache")


def test_classify(cli: Cli, run: Path, table: Path, tmp_path: Path) -> None:
    pictures = [table.parent / f"{i:03d}.png" for i in (50, 52)]  # plain red, plain blue
    labels = ["red plain", "blue plain", "green plain"]
    status, out, err = cli("classify", *pictures, "--labels", *labels, "--templates", "a {}", "--model", run)
    assert status == 0 and err == ""
    first, second = out.splitlines()
    assert str(pictures[0]) in first and first.index("red plain") < first.index("blue plain")
    assert second.index("blue plain") < second.index("red plain") and "%" in first
    (tmp_path / "labels.txt").write_text("\n".join(labels) + "\n\n")
    for given in ([str(tmp_path / "labels.txt")], [",".join(labels)]):
        again = cli("classify", *pictures, "--labels", *given, "--templates", "a {}", "--model", run)
        assert again == (0, out, "")


def test_classify_json_and_bad_pictures(cli: Cli, run: Path, table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    draw("red", "plain").save(folder / "red.png")
    (folder / "bad.jpg").write_bytes(b"no picture")
    status, out, err = cli("classify", folder, "--labels", "a", "b", "--json", "-k", "9", "--model", run)
    found = json.loads(out)
    assert status == 0 and len(found) == 1 and found[0]["path"].endswith("red.png")
    assert sum(entry["probability"] for entry in found[0]["labels"]) == pytest.approx(1, abs=1e-5)
    assert [entry["label"] for entry in found[0]["labels"]] != [] and len(found[0]["labels"]) == 2
    assert "bad.jpg" in err and err.startswith("clipkit: ") and err.count("\n") == 1


def test_calibrate_and_classify(cli: Cli, run: Path, mistake: Any, tmp_path: Path) -> None:
    root, out_file = tmp_path / "classes", tmp_path / "calibration.json"
    for colour in ("red", "blue"):
        (root / colour).mkdir(parents=True)
        for i, shape in enumerate(("plain", "left", "right") * 2):
            draw(colour, shape).save(root / colour / f"{i}.png")
    (root / "none").mkdir()
    draw("green", "plain").save(root / "none" / "0.png")
    (root / "red" / "cut.png").write_bytes((root / "red" / "0.png").read_bytes()[:60])
    (root / "red" / "huge.png").touch()
    os.truncate(root / "red" / "huge.png", 1 << 40)  # a hole: it takes no room on the disk
    (root / ".git").mkdir()
    status, out, err = cli("calibrate", root, "--model", run, "--output", out_file)
    assert status == 0 and err.count("\n") == 2 and "cut.png" in err and "huge.png: 1,024.0 GiB" in err
    (root / "red" / "cut.png").unlink()
    (root / "red" / "huge.png").unlink()
    assert "12 pictures of 2 classes, 1 of none" in out and "expected calibration error" in out
    made = json.loads(out_file.read_text())
    assert made["labels"] == ["blue", "red"] and made["temperature"] > 0

    status, out, _ = cli("classify", root, "--calibration", out_file, "--model", run, "--json")
    results = json.loads(out)
    assert status == 0 and len(results) == 13
    for result in results:
        assert result["none_of_these"] == (result["labels"][0]["probability"] < made["none_below"])
    kept = [not r["none_of_these"] for r in results if "/none/" not in r["path"]]
    assert sum(kept) / len(kept) == pytest.approx(made["known_kept"])
    status, out, _ = cli("classify", root / "none", "--calibration", out_file, "--model", run)
    assert status == 0 and ("none of these (" in out) == (made["none_found"] == 1)

    assert "--labels" in mistake("classify", root, "--calibration", out_file, "--labels", "a", "b", "--model", run)
    assert "gone.json" in mistake("classify", root, "--calibration", tmp_path / "gone.json", "--model", run)
    (tmp_path / "other.json").write_text('{"labels": ["a"]}')
    assert "other.json" in mistake("classify", root, "--calibration", tmp_path / "other.json", "--model", run)
    made["fingerprint"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(made))
    assert "calibrate again" in mistake("classify", root, "--calibration", tmp_path / "other.json", "--model", run)
    assert "classes" in mistake("calibrate", root / "red", "--model", run)
    assert "nowhere" in mistake("calibrate", tmp_path / "nowhere", "--model", run)
