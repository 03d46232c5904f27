"""What the fields accept, and how the command starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.inference import Aligner, Index
from demos import inputs
from demos.__main__ import find_index, main
from demos.examples import make_examples

ROOT = Path(__file__).parents[2]


def test_a_picture_is_cut_without_changing_its_embedding(model: Aligner, tmp_path: Path) -> None:
    path = tmp_path / "noise.jpg"
    Image.effect_noise((517, 311), 90).convert("RGB").save(path)
    picture = inputs.read_picture(path, model.model.picture)
    assert picture.pixels.shape == (3, model.model.picture.size, model.model.picture.size)
    np.testing.assert_allclose(model.encode_image(picture.pixels), model.encode_image(path), atol=1e-6)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (9000, 9000)).save(bomb)
    with pytest.raises(ClipkitError, match=r"bomb\.png: 9000x9000 pixels"):
        inputs.check_picture(bomb)


def test_lines_are_trimmed_counted_and_limited() -> None:
    assert inputs.read_lines(" a \n\n b  c\r\nd\u2028e", "caption", "x") == ["a", "b c", "d e"]
    assert inputs.read_lines("a\ud83d\n\ud83d\ude00", "caption", "x") == ["a\ufffd", "\U0001f600"], "half an emoji"
    with pytest.raises(ClipkitError, match="101 captions; at most 100"):
        inputs.read_lines("a\n" * 101, "caption", "x")
    with pytest.raises(ClipkitError, match="caption 2 has 1,001 characters"):
        inputs.read_lines("a\n" + "b" * 1001, "caption", "x")


def test_verdicts_follow_the_order_of_the_fields() -> None:
    def wrong() -> None:
        raise ClipkitError("wrong")

    found = inputs.verdicts(lambda: None, wrong, None)
    assert [(entry["is_valid"], entry["message"]) for entry in found] == [(True, ""), (False, "wrong"), (True, "")]


def test_examples_come_from_the_index_or_are_drawn(index: Index) -> None:
    for examples in (make_examples(index), make_examples(None)):
        assert len(examples.pictures) >= 3
        assert all(Image.open(path).size > (0, 0) for path in examples.pictures)
        assert examples.queries and examples.captions and examples.labels


def test_what_is_searched(model: Aligner, index: Index, tmp_path: Path) -> None:
    assert find_index(model, str(tmp_path), None, None) is None
    index.save(tmp_path / "index")
    own = find_index(model, str(tmp_path), None, None)
    assert own is not None and len(own) == len(index)
    built = find_index(model, str(tmp_path), Path(index.items[0].path).parent, None)
    assert built is not None and len(built) == len(index)


def test_mistakes_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClipkitError, match="runs/starter: no such run here; train it with `clipkit train`"):
        main([])
    with pytest.raises(ClipkitError, match="give one of them"):
        main(["runs/x", "--folder", "a", "--index", "b"])


@pytest.mark.slow
def test_python_m_demos_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demos"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("clipkit: runs/starter: no such run here")
    assert len(done.stderr.splitlines()) == 1
