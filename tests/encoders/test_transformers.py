"""CLIP and SigLIP checkpoints of transformers, made offline: equal features, proven cutting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipkit.config import ModelConfig
from clipkit.encoders import build, from_transformers
from clipkit.encoders.text_length import prove_cut
from clipkit.errors import ClipkitError
from clipkit.pairs import fit, normalize

Make = Callable[[str], Path]


def features(output: Any) -> Tensor:
    """Projected features, which newer versions of transformers wrap."""
    return F.normalize(output if isinstance(output, Tensor) else output.pooler_output, dim=-1)


def theirs(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_transformers_own(
    kind: str, transformers_model: Make, captions: list[str], pixels: Tensor
) -> None:
    folder = transformers_model(kind)
    net, tokenize = theirs(folder)
    model = build(ModelConfig(model=str(folder)), sigmoid=kind == "siglip").eval()
    expected = features(net.get_image_features(pixel_values=pixels))
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-5)
    padding = {"padding": "max_length", "max_length": 24, "truncation": True, "return_tensors": "pt"}
    tokens = tokenize(captions, **padding)["input_ids"]
    expected = features(net.get_text_features(input_ids=tokens))
    assert float(F.cosine_similarity(expected[:1], expected[1:2])) < 0.999, "a tower that says the same of everything"
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=0, atol=1e-5)
    got = model.tokenizer(captions)
    torch.testing.assert_close(model.encode_text(got), expected, rtol=0, atol=1e-5)
    assert torch.equal(got, tokens[:, : got.shape[1]])
    assert (got.shape[1] < 24) == model.tokenizer.cut == (kind == "clip")
    assert float(model.log_scale) == pytest.approx(2.5)
    assert (model.bias is None) if kind == "clip" else float(model.bias) == pytest.approx(-7.0)
    assert model.description["embed_dim"] == expected.shape[1]


def test_cutting_is_proven_or_refused(transformers_model: Make) -> None:
    clip, siglip = (from_transformers(transformers_model(kind)) for kind in ("clip", "siglip"))
    assert prove_cut(clip.text, clip.tokenizer) < 1e-5
    assert prove_cut(siglip.text, siglip.tokenizer) > 1e-3


def test_the_bias_belongs_to_the_sigmoid_loss(transformers_model: Make) -> None:
    config = ModelConfig(model=str(transformers_model("siglip")))
    assert build(config).bias is None
    model = build(ModelConfig(model=str(transformers_model("clip"))), sigmoid=True)
    assert model.bias is not None and model.bias.shape == (1,) and float(model.bias) == -10
    assert float(model.log_scale.exp()) == pytest.approx(10)
    assert float(build(config, sigmoid=True, scale_init=20).log_scale.exp()) == pytest.approx(20)
    assert float(build(config, scale_init=20).log_scale.exp()) == pytest.approx(20)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_reference_view_is_the_processors(kind: str, transformers_model: Make) -> None:
    from transformers import AutoImageProcessor

    folder = transformers_model(kind)
    model, processor = from_transformers(folder), AutoImageProcessor.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8))
    assert model.picture.reference is not None
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(model.picture.reference(image), expected)
    assert expected.shape == (3, 32, 32) and model.picture.size == 32


@pytest.mark.parametrize(("edge", "crop"), [(32, 32), (40, 32)])
def test_the_fast_view_is_close_to_the_processors(
    edge: int, crop: int, transformers_model: Make, tmp_path: Path
) -> None:
    """Also where the processor resizes to more than it cuts out, as many do (256, then 224)."""
    folder = tmp_path / "model"
    shutil.copytree(transformers_model("clip"), folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": edge}, "crop_size": {"height": crop, "width": crop}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    spec = from_transformers(folder).picture
    y, x = np.mgrid[:150, :200]
    waves = [128 + 100 * np.sin(x / a + y / b) for a, b in ((9, 14), (20, -8), (-11, 30))]
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    assert spec.reference is not None
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    difference = (normalize(fit(pixels, spec)[None], spec)[0] - spec.reference(image)).abs()
    assert float(difference.mean()) * 0.27 * 255 < 1


def test_locking(transformers_model: Make) -> None:
    model = build(ModelConfig(model=str(transformers_model("clip")), lock_image=True))
    model.train()
    assert model.image.locked and not model.text.locked and not model.image.trunk.training
    assert not any(p.requires_grad for p in model.image.trunk.parameters())
    assert all(p.requires_grad for p in model.text.parameters())


def message(function: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(ClipkitError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_dual_encoder_is_refused(bert: Path, tmp_path: Path, transformers_model: Make) -> None:
    said = message(from_transformers, bert)
    assert str(bert) in said and "bert" in said
    assert str(tmp_path) in message(from_transformers, tmp_path)
    assert "no/such-model" in message(from_transformers, "no/such-model")
    for missing in ("model.safetensors", "preprocessor_config.json", "config.json"):
        folder = tmp_path / missing
        shutil.copytree(transformers_model("clip"), folder)
        (folder / missing).unlink()
        assert missing in message(from_transformers, folder)  # the folder bears the file's name
