"""Pairs of towers, and models that are saved and made again without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.config import ModelConfig
from clipkit.encoders import DualEncoder, build, from_pair, rebuild, save_description
from clipkit.errors import ClipkitError

Make = Callable[[str], Path]
IMAGE_MODEL = "test_convnext"


def pair_config(bert: Path, **changes: Any) -> ModelConfig:
    options = {"image_model": IMAGE_MODEL, "text_model": str(bert), "embed_dim": 12, "image_size": 32}
    return ModelConfig(**{**options, "image_pretrained": False, **changes})  # type: ignore[arg-type]


@torch.no_grad()
def test_a_pair_is_its_two_models_and_two_linear_heads(bert: Path, captions: list[str], pixels: Tensor) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = build(pair_config(bert)).eval()
    net, tokenize = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    encoded = tokenize(captions, padding=True, return_tensors="pt")
    hidden, mask = net(**encoded).last_hidden_state, encoded["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    weight: Any = model.text.head.weight
    expected = F.normalize(pooled @ weight.T, dim=-1)
    torch.testing.assert_close(model.encode_text(model.tokenizer(captions)), expected, rtol=0, atol=1e-5)
    assert model.tokenizer.cut and model.tokenizer(captions).shape == encoded["input_ids"].shape
    model.tokenizer.cut = False
    assert model.tokenizer(captions).shape == (4, 40)  # at most 77, and at most what BERT has positions for
    torch.testing.assert_close(model.encode_text(model.tokenizer(captions)), expected, rtol=0, atol=1e-5)
    image_weight: Any = model.image.head.weight
    image = F.normalize(model.image.trunk(pixels) @ image_weight.T, dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), image, rtol=0, atol=1e-6)
    assert model.encode_image(pixels).shape == (4, 12)
    assert float(model.log_scale.exp()) == pytest.approx(1 / 0.07) and model.bias is None


def test_every_parameter_of_a_pair_gets_a_gradient(bert: Path, captions: list[str], pixels: Tensor) -> None:
    """One that does not would stall DDP."""
    model = build(pair_config(bert))
    out = model(pixels, model.tokenizer(captions))
    (out.images @ out.texts.T * out.log_scale.exp()).logsumexp(1).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_pooling_and_random_text_weights(bert: Path, captions: list[str]) -> None:
    with torch.no_grad():
        first = from_pair(IMAGE_MODEL, str(bert), 12, image_pretrained=False, pooling="cls", context_length=16).eval()
        tokens = first.tokenizer(captions)
        hidden = first.text.trunk.encoder(tokens, (tokens != 0).long()).last_hidden_state  # type: ignore[operator, union-attr]
        torch.testing.assert_close(first.text.trunk(tokens), hidden[:, 0])
    assert first.tokenizer.context_length == 16
    fresh = build(pair_config(bert, text_pretrained=False))
    trained = build(pair_config(bert))
    name = "trunk.encoder.embeddings.word_embeddings.weight"
    assert not torch.equal(fresh.text.state_dict()[name], trained.text.state_dict()[name])


@torch.no_grad()
def same(model: DualEncoder, again: DualEncoder, captions: list[str]) -> None:
    """Equal outputs once the weights are loaded, equal tokens, equal view of pictures."""
    again.load_state_dict(model.state_dict())
    model.eval(), again.eval()
    size = model.picture.size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images), rtol=0, atol=1e-6)
    assert torch.equal(again.tokenizer(captions), model.tokenizer(captions))
    tokens = model.tokenizer(captions)
    torch.testing.assert_close(again.encode_text(tokens), model.encode_text(tokens), rtol=0, atol=1e-6)
    assert again.picture == model.picture
    assert (again.picture.reference is None) == (model.picture.reference is None)
    assert again.tokenizer.cut == model.tokenizer.cut
    assert again.tokenizer.context_length == model.tokenizer.context_length
    assert (again.bias is None) == (model.bias is None)
    assert (again.image.locked, again.text.locked) == (model.image.locked, model.text.locked)


def test_the_network_is_off() -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("kind", ["vit", "quick", "timm", "siglip"])
def test_open_clip_models_come_back(kind: str, open_clip_config: Make, tmp_path: Path, captions: list[str]) -> None:
    config = tmp_path / f"tiny-{kind}.json"
    shutil.copy(open_clip_config(kind), config)
    model = build(ModelConfig(model=str(config), lock_image=True, image_size=48), sigmoid=kind == "siglip", seed=3)
    save_description(model, tmp_path / "saved")
    config.unlink()
    again = rebuild(tmp_path / "saved")
    same(model, again, captions)
    save_description(again, tmp_path / "twice")  # a resumed run saves what it was rebuilt from
    same(model, rebuild(tmp_path / "twice"), captions)


def test_open_clip_models_with_a_transformers_tower_come_back(bert: Path, tmp_path: Path, captions: list[str]) -> None:
    moved = tmp_path / "bert"
    shutil.copytree(bert, moved)
    text = {"hf_model_name": str(moved), "hf_tokenizer_name": str(moved), "hf_model_pretrained": False}
    text |= {"hf_pooler_type": "mean_pooler", "hf_proj_type": "linear", "context_length": 20}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = tmp_path / "mixed.json"
    config.write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    model = build(ModelConfig(model=str(config)))
    save_description(model, tmp_path / "saved")
    shutil.rmtree(moved)
    same(model, rebuild(tmp_path / "saved"), captions)


@pytest.mark.parametrize("options", [{}, {"lock_image": True, "lock_text": True}])
def test_pairs_come_back(options: dict[str, bool], bert: Path, tmp_path: Path, captions: list[str]) -> None:
    moved = tmp_path / "bert"
    shutil.copytree(bert, moved)
    model = build(pair_config(moved, **options), sigmoid=True)
    save_description(model, tmp_path / "saved")
    shutil.rmtree(moved)
    again = rebuild(tmp_path / "saved")
    same(model, again, captions)
    save_description(again, tmp_path / "twice")
    same(model, rebuild(tmp_path / "twice"), captions)


def test_a_pairs_pooling_and_context_come_back(bert: Path, tmp_path: Path, captions: list[str]) -> None:
    model = from_pair(IMAGE_MODEL, str(bert), 12, image_pretrained=False, pooling="cls", context_length=16)
    save_description(model, tmp_path / "saved")
    same(model, rebuild(tmp_path / "saved"), captions)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_models_come_back(
    kind: str, transformers_model: Make, tmp_path: Path, captions: list[str]
) -> None:
    moved = tmp_path / "model"
    shutil.copytree(transformers_model(kind), moved)
    model = build(ModelConfig(model=str(moved), lock_text=True), sigmoid=kind == "siglip")
    save_description(model, tmp_path / "saved")
    shutil.rmtree(moved)
    again = rebuild(tmp_path / "saved")
    same(model, again, captions)
    save_description(again, tmp_path / "twice")
    same(model, rebuild(tmp_path / "twice"), captions)


def test_a_description_holds_no_weights(bert: Path, tmp_path: Path) -> None:
    save_description(build(pair_config(bert)), tmp_path)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".safetensors", ".bin", ".pt", ".pkl")]
    assert str(bert) not in (tmp_path / "text" / "config.json").read_text(), "a path of this machine is left in it"


def message(function: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(ClipkitError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_half_a_pair(bert: Path) -> None:
    assert "--text-model" in message(build, ModelConfig(image_model=IMAGE_MODEL))
    assert "--image-model" in message(build, ModelConfig(text_model=str(bert)))


def test_unknown_towers(bert: Path, tmp_path: Path) -> None:
    said = message(build, pair_config(bert, image_model="resnet_50"))
    assert "resnet_50" in said and "resnet50" in said
    assert "zzzzzz" in message(build, pair_config(bert, image_model="zzzzzz"))
    said = message(build, pair_config(bert, image_pretrained=True))  # no network, no weights
    assert IMAGE_MODEL in said
    assert "nowhere" in message(build, pair_config(tmp_path / "nowhere"))
    shutil.copytree(bert, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    assert "half" in message(build, pair_config(tmp_path / "half"))
    assert build(pair_config(tmp_path / "half", text_pretrained=False)).tokenizer.cut
    (tmp_path / "notok").mkdir()
    shutil.copy(bert / "config.json", tmp_path / "notok")
    assert "notok" in message(build, pair_config(tmp_path / "notok"))


def test_a_locked_tower_of_random_weights_is_told(
    bert: Path, open_clip_config: Make, recwarn: pytest.WarningsRecorder
) -> None:
    build(pair_config(bert, lock_text=True))  # from its weights
    build(pair_config(bert))
    assert not [w for w in recwarn if "random weights" in str(w.message)]
    with pytest.warns(UserWarning, match="lock-image .* without --no-image-pretrained"):
        build(pair_config(bert, lock_image=True))
    with pytest.warns(UserWarning, match="lock-text .* with --pretrained"):
        build(ModelConfig(model=str(open_clip_config("vit")), lock_text=True))


def test_a_temperature_must_be_positive(open_clip_config: Make) -> None:
    config = ModelConfig(model=str(open_clip_config("vit")))
    for wrong in (0.0, -1.0, float("nan")):
        assert "--scale-init" in message(build, config, scale_init=wrong)
    assert float(build(config, scale_init=33).log_scale.exp()) == pytest.approx(33)
    model = build(config, sigmoid=True)
    assert float(model.log_scale.exp()) == pytest.approx(10) and float(model.bias) == -10  # type: ignore[arg-type]


def test_what_cannot_be_rebuilt(tmp_path: Path, open_clip_config: Make) -> None:
    assert str(tmp_path) in message(rebuild, tmp_path)
    save_description(build(ModelConfig(model=str(open_clip_config("vit")))), tmp_path)
    path = tmp_path / "model.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"kind": "unheard of"}))
    assert "unheard of" in message(rebuild, tmp_path)
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        assert "model.json" in message(rebuild, tmp_path)
