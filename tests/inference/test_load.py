"""clipkit.load: where models come from, and every way in which it can fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.errors import ClipkitError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Any) -> Path:
    """A run of three steps."""
    root = tmp_path_factory.mktemp("run")
    rows = ["filepath,caption"]
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 255 - 20 * i, 100)).save(root / f"{i}.png")
        rows.append(f"{i}.png,picture number {i}")
    (root / "captions.csv").write_text("\n".join(rows))
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    clipkit.train(
        "clip", train_data=str(root / "captions.csv"), model=str(checkpoint("clip", "safetensors")[0]), batch_size=4,
        epochs=1, workers=0, output=str(root / "run"),
    )  # fmt: skip
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    return root / "run"


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ClipkitError) as caught:
        clipkit.load(*args, **kwargs)
    said = str(caught.value)
    assert "\n" not in said, said
    return said


def test_a_run_or_one_of_its_checkpoints(run: Path, files: list[Path]) -> None:
    whole = clipkit.load(run, device="cpu")
    assert whole.name == str(run) and whole.embed_dim == 24 and not whole.model.training
    for source in (str(run), run / "checkpoints" / "step-3"):
        again = clipkit.load(source, device="cpu")
        assert np.array_equal(again.encode_image(files), whole.encode_image(files))
        assert np.array_equal(again.encode_text(["a bird"]), whole.encode_text(["a bird"]))


def test_a_run_needs_neither_its_config_file_nor_its_data(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved")
    (tmp_path / "moved" / "config.yaml").unlink()
    assert np.array_equal(
        clipkit.load(tmp_path / "moved", device="cpu").encode_text("a"),
        clipkit.load(run, device="cpu").encode_text("a"),
    )


def test_an_open_clip_folder(checkpoint: Any, tmp_path: Path, model: Any) -> None:
    config, weights = checkpoint("clip", "safetensors")
    described = {"model_cfg": json.loads(config.read_text()), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    assert "weights" in refused(tmp_path)
    shutil.copy(weights, tmp_path / "open_clip_model.safetensors")
    found = clipkit.load(tmp_path, device="cpu")
    assert np.array_equal(found.encode_text("a bird"), model.encode_text("a bird"))


def test_an_open_clip_folder_keeps_its_preprocessing(checkpoint: Any, tmp_path: Path) -> None:
    """open_clip_config.json holds mean and std too, and they need not be OpenAI's."""
    config, weights = checkpoint("clip", "safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    described = {"model_cfg": json.loads(config.read_text()), "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    shutil.copy(weights, tmp_path / "open_clip_model.safetensors")
    spec = clipkit.load(tmp_path, device="cpu").model.picture
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)
    assert spec.resize == "squash" and spec.interpolation == "bilinear"


def test_names_that_nobody_knows(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert "ViT-B-32" in refused("ViT-B-23"), "the nearest name"
    assert "runs/nothing" in refused("runs/nothing")
    assert "no/such/thing/here" in refused("no/such/thing/here")
    assert "nobody/nothing" in refused("nobody/nothing")
    refused("")


def test_weights_that_are_missing(checkpoint: Any, tmp_path: Path) -> None:
    config, _ = checkpoint("clip", "safetensors")
    assert "pretrained=" in refused("ViT-B-32")
    assert "pretrained=" in refused(config)
    assert "nowhere.pt" in refused(config, pretrained=str(tmp_path / "nowhere.pt"))
    said = refused("ViT-B-32", pretrained="laion9b")
    assert "laion9b" in said and "laion2b_s34b_b79k" in said


def test_weights_that_do_not_fit(checkpoint: Any, tmp_path: Path) -> None:
    config, weights = checkpoint("clip", "safetensors")
    _, other = checkpoint("sigmoid", "safetensors")
    assert str(config.stem) in refused(config, pretrained=str(other))
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(weights.read_bytes()[:1000])
    refused(config, pretrained=str(bad))
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no checkpoint")
    refused(config, pretrained=str(bad))
    values = json.loads(config.read_text())
    values["embed_dim"] = 12
    narrow = tmp_path / "narrow.json"
    narrow.write_text(json.dumps(values))
    refused(narrow, pretrained=str(weights))


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


def test_a_pickle_in_a_weights_file_is_not_run(checkpoint: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = checkpoint("clip", "safetensors")
    torch.save({"state_dict": {}, "more": Evil()}, tmp_path / "evil.pt")
    refused(config, pretrained=str(tmp_path / "evil.pt"))
    assert not (tmp_path / "owned").exists()


def test_configs_that_are_none(tmp_path: Path, checkpoint: Any) -> None:
    _, weights = checkpoint("clip", "safetensors")
    assert "missing.json" in refused(tmp_path / "missing.json", pretrained=str(weights))
    for name, text in (("broken", "{"), ("list", "[]"), ("empty", "{}"), ("other", '{"embed_dim": 8}')):
        (tmp_path / f"{name}.json").write_text(text)
        assert f"{name}.json" in refused(tmp_path / f"{name}.json", pretrained=str(weights))


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(tmp_path / "empty")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "run" in refused(tmp_path / "run"), "a run that was stopped before its first checkpoint"
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "bert" in refused(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text("{")
    assert "bert" in refused(tmp_path / "bert")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "state.json"])
@pytest.mark.parametrize("how", ["cut", "noise", "gone"])
def test_a_damaged_checkpoint(run: Path, tmp_path: Path, name: str, how: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "checkpoints" / "step-3" / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if how == "cut" else b"\x93" * 300)
    assert str(copy) in refused(copy)


def test_a_checkpoint_of_a_newer_clipkit(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    path = tmp_path / "copy" / "checkpoints" / "step-3" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "telepathy"}))
    assert "telepathy" in refused(tmp_path / "copy")


@pytest.mark.parametrize("device", ["cuda:7", "warp-drive", "meta-physics", "mps"])
def test_a_device_that_is_not_there(checkpoint: Any, device: str) -> None:
    if (device == "mps" and torch.backends.mps.is_available()) or torch.cuda.device_count() > 7:
        pytest.skip("it is there")
    config, weights = checkpoint("clip", "safetensors")
    assert device in refused(config, pretrained=str(weights), device=device)


def test_a_precision_that_is_none(checkpoint: Any) -> None:
    config, weights = checkpoint("clip", "safetensors")
    assert "fp4" in refused(config, pretrained=str(weights), precision="fp4")


def test_a_transformers_folder_without_a_part(transformers_clip: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "preprocessor_config.json", "tokenizer.json"):
        copy = tmp_path / name
        shutil.copytree(transformers_clip, copy)
        (copy / name).unlink()
        if name == "tokenizer.json":
            (copy / "tokenizer_config.json").unlink()
        for extra in copy.glob("processor_config.json"):
            extra.unlink()
        assert str(copy) in refused(copy)


def test_pretrained_is_not_ignored_in_silence(run: Path, transformers_clip: Path) -> None:
    """A run and a transformers folder bring their weights; asking for others there is a mistake."""
    for source in (run, transformers_clip):
        assert "pretrained" in refused(source, pretrained="laion2b_s34b_b79k")
