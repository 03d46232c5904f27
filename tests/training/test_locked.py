"""Locked towers: encoded once, the cache is what the tower says, and training goes on from it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import draw, losses, make_config, make_table, steps, weights

from clipkit.config import Config, ModelConfig
from clipkit.encoders import DualEncoder, build
from clipkit.pairs import decode_image, fit, normalize, open_shards
from clipkit.training.data import make_readers


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i, colour in enumerate(["red", "green", "blue", "black", "red"]):  # the last is the first once more
            buffer = io.BytesIO()
            draw(colour, "left", i % 4).save(buffer, "PNG")
            record = json.dumps({"captions": [f"a {colour} left", "the same for all of them, and a longer one"]})
            for name, data in ((f"{i}.png", buffer.getvalue()), (f"{i}.json", record.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


class Rows:
    """Counts the rows that a tower's trunk encodes."""

    def __init__(self, trunk: torch.nn.Module) -> None:
        self.count = 0
        trunk.register_forward_pre_hook(self._note)

    def _note(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.count += len(inputs[0])


def locked_model(tmp_path: Path, seed: int = 0, **changes: Any) -> DualEncoder:
    path = make_config(tmp_path / "tiny.json")
    return build(ModelConfig(str(path), lock_image=True, lock_text=True, **changes), seed=seed)


def config(augment: str = "none") -> Config:
    return Config(recipe="lit").replace(augment=augment, lock_image=True, lock_text=True, captions="all")


def test_cached_encodings_are_the_direct_forward(tmp_path: Path, shards: Path) -> None:
    model, data = locked_model(tmp_path), open_shards(shards)
    batch = make_readers(model, data, {}, config()).train([(0, i) for i in range(5)])
    assert batch.images.shape == (5, 24) and batch.images.dtype == torch.float32
    pixels = torch.stack([fit(decode_image(data.read(i).image), model.picture) for i in range(5)])
    captions = [c for i in range(5) for c in data.read_captions(i)]
    with torch.no_grad():
        images = model.image.trunk(normalize(pixels, model.picture))
        texts = model.text.trunk(model.tokenizer(captions))
        torch.testing.assert_close(batch.images, images, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(batch.texts, texts, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.encode_image(batch.images), model.encode_image(pixels), atol=1e-5, rtol=1e-4)
    assert batch.image_ids.tolist() == [0, 1, 2, 3, 4]
    assert batch.text_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_each_content_is_encoded_once_and_a_second_run_encodes_nothing(tmp_path: Path, shards: Path) -> None:
    first = locked_model(tmp_path)
    images, texts = Rows(first.image.trunk), Rows(first.text.trunk)
    one = make_readers(first, open_shards(shards), {"val": open_shards(shards)}, config())
    assert images.count == 4, "two of the five pictures are the same file"
    assert texts.count == 5, "four captions of their own, and one that all share"
    before = one.train([(0, 0)])
    again = locked_model(tmp_path)
    images, texts = Rows(again.image.trunk), Rows(again.text.trunk)
    two = make_readers(again, open_shards(shards), {"val": open_shards(shards)}, config())
    assert images.count == texts.count == 0
    assert torch.equal(before.images, two.train([(0, 0)]).images)
    assert torch.equal(before.images, two.held_out["val"]([(0, 0)]).images)


def test_other_weights_or_another_view_are_encoded_anew(tmp_path: Path, shards: Path) -> None:
    make_readers(locked_model(tmp_path), open_shards(shards), {}, config())
    other = locked_model(tmp_path, seed=1)
    rows = Rows(other.image.trunk)
    make_readers(other, open_shards(shards), {}, config())
    assert rows.count == 4
    small = locked_model(tmp_path)
    rows = Rows(small.image.trunk)
    make_readers(small, open_shards(shards), {}, config("small"))
    assert rows.count == 4, "the plain view is there, the small one is new"


def test_cropped_views_are_not_cached(tmp_path: Path, shards: Path) -> None:
    model = locked_model(tmp_path)
    readers = make_readers(model, open_shards(shards), {}, config("crop"))
    batch = readers.train([(0, 0), (1, 0)])
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (2, 3, 32, 32)
    assert not torch.equal(batch.images[0], batch.images[1]), "another crop in another epoch"


@pytest.mark.parametrize("how", ["cut", "empty", "noise", "missing"])
@pytest.mark.parametrize("which", ["keys", "rows"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, shards: Path, cache: Path, how: str, which: str) -> None:
    model = locked_model(tmp_path)
    expected = make_readers(model, open_shards(shards), {}, config()).train([(0, i) for i in range(5)])
    files = [p for p in cache.rglob("*.npy") if p.name.endswith(".keys.npy") == (which == "keys")]
    assert files
    for path in files:
        data = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes({"cut": data[: len(data) - 7], "empty": b"", "noise": b"\x00" * len(data)}[how])
    got = make_readers(locked_model(tmp_path), open_shards(shards), {}, config()).train([(0, i) for i in range(5)])
    assert torch.equal(got.images, expected.images) and torch.equal(got.texts, expected.texts)


def test_lit_learns_and_leaves_the_image_tower_alone(run_here: Any, tmp_path: Path, tiny: Path) -> None:
    run = tmp_path / "run"
    table = make_table(tmp_path / "data")
    assert run_here(run, recipe="lit", train_data=table, epochs=8) == 0
    found = losses(run)
    assert found[24] < found[1] - 0.3
    fresh = build(ModelConfig(str(tiny))).state_dict()
    newest = weights(run / "checkpoints" / f"step-{steps(run)[-1]}")
    trained = {name.split("/", 1)[1]: tensor for name, tensor in newest.items() if not name.startswith("optimizer")}
    for name, tensor in trained.items():
        if name.startswith("image."):
            assert torch.equal(tensor, fresh[name]), f"{name} moved"
    assert any(not torch.equal(t, fresh[n]) for n, t in trained.items() if n.startswith("text."))


def test_locked_weights_are_on_the_disk_once(run_here: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_here(run, recipe="lit", train_data=make_table(tmp_path / "data"), keep_last=99) == 0
    inodes = {(run / "checkpoints" / f"step-{s}" / "frozen.safetensors").stat().st_ino for s in steps(run)}
    assert len(steps(run)) == 4 and len(inodes) == 1
    import clipkit

    assert clipkit.load(run, device="cpu").model.image.locked


def test_a_locked_run_resumes_bit_for_bit(run_here: Any, tmp_path: Path, steady: None, monkeypatch: Any) -> None:
    import os
    import signal

    from training_helpers import assert_same_weights

    from clipkit.training import loop

    table = make_table(tmp_path / "data")
    assert run_here(tmp_path / "whole", recipe="lit", train_data=table) == 0
    real, made = loop.train_step, [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        if made[0] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", wrapped)
    assert run_here(tmp_path / "run", recipe="lit", train_data=table) == 0
    assert steps(tmp_path / "run")[-1] == 5
    assert run_here(tmp_path / "run", recipe="lit", train_data=table, resume="auto") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert_same_weights(*(tmp_path / name / "checkpoints" / "step-12" for name in ("run", "whole")))
