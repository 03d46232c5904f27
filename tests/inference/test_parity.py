"""The same numbers as the library that a model comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

import clipkit

TEXTS = ["a photo of a red bird", "dog", "two small cats on the wall in the green garden", "a photo of the blue wall"]


@pytest.mark.parametrize("kind", ["clip", "sigmoid"])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_open_clip(checkpoint: Any, theirs: Any, files: list[Path], kind: str, ending: str) -> None:
    config, path = checkpoint(kind, ending)
    mine = clipkit.load(str(config), pretrained=str(path), device="cpu")
    model, preprocess, tokenizer = theirs(kind)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        np.testing.assert_allclose(
            mine.encode_image(list(pixels)), model.encode_image(pixels, normalize=True).numpy(), atol=1e-5, rtol=0
        )
        np.testing.assert_allclose(
            mine.encode_image(list(pixels), normalize=False), model.encode_image(pixels).numpy(), atol=1e-5, rtol=1e-4
        )
        tokens = tokenizer(TEXTS)
        np.testing.assert_allclose(
            mine.encode_text(TEXTS), model.encode_text(tokens, normalize=True).numpy(), atol=1e-5, rtol=0
        )
        np.testing.assert_allclose(
            mine.encode_text(TEXTS, normalize=False), model.encode_text(tokens).numpy(), atol=1e-5, rtol=1e-4
        )
        # From files, as open_clip's users read them. (EXIF is the reader's business there: turned first.)
        batch = torch.stack(
            [preprocess(ImageOps.exif_transpose(Image.open(p))) for p in files if "clear" not in p.name]
        )
        expected = model.encode_image(batch, normalize=True).numpy()
    opaque = [p for p in files if "clear" not in p.name]
    np.testing.assert_allclose(_reference(mine, opaque), expected, atol=1e-5, rtol=0)
    fast = mine.encode_image(opaque)
    assert (fast * expected).sum(axis=1).min() > 0.99, "the fast decoder is close"
    assert mine.scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-5)
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias.detach())
    assert mine.bias == pytest.approx(bias, abs=1e-5)


def _reference(model: Any, paths: list[Path]) -> np.ndarray:
    """decode="reference" from paths; a picture that EXIF turns is compared turned."""
    rows = []
    for path in paths:
        turned = Image.open(path).getexif().get(0x0112, 1) != 1
        rows.append(
            model.encode_image(ImageOps.exif_transpose(Image.open(path)) if turned else path, decode="reference")
        )
    return np.stack(rows)


def test_reference_from_a_turned_file_agrees_with_the_fast_decoder_on_what_is_up(model: Any, files: list[Path]) -> None:
    """A photograph held upright must not lie on its side in one of the two modes."""
    turned = next(p for p in files if p.name == "turned.jpg")
    upright = ImageOps.exif_transpose(Image.open(turned))
    upright_row = model.encode_image(upright, decode="reference")
    lying_row = model.encode_image(Image.fromarray(np.array(Image.open(turned))), decode="reference")
    row = model.encode_image(turned, decode="reference")
    exact_to_library = np.abs(row - lying_row).max() < 1e-5  # open_clip's own transform does not look at EXIF
    assert exact_to_library or np.abs(row - upright_row).max() < 1e-5


def test_probabilities_are_open_clips(checkpoint: Any, theirs: Any, files: list[Path]) -> None:
    model, preprocess, tokenizer = theirs("clip")
    config, path = checkpoint("clip", "safetensors")
    mine = clipkit.load(config, pretrained=path, device="cpu")
    pixels = torch.stack([preprocess(Image.open(p)) for p in files[:3]])
    labels = ["bird", "dog", "wall"]
    with torch.no_grad():
        images = model.encode_image(pixels, normalize=True)
        texts = model.encode_text(tokenizer([f"a photo of a {n}." for n in labels]), normalize=True)
        expected = (model.logit_scale.exp() * images @ texts.T).softmax(dim=1).numpy()
    found = mine.classifier(labels, "a photo of a {}.").predict_proba(list(pixels))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_transformers(transformers_clip: Path, files: list[Path]) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    mine = clipkit.load(transformers_clip, device="cpu")
    model = CLIPModel.from_pretrained(transformers_clip).eval()
    tokenizer = AutoTokenizer.from_pretrained(transformers_clip)
    processor = CLIPImageProcessor.from_pretrained(transformers_clip)
    opaque = [p for p in files if p.name not in ("clear.png", "turned.jpg")]
    pixels = processor(images=[Image.open(p).convert("RGB") for p in opaque], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        images = _features(model.get_image_features(pixel_values=pixels))
        texts = _features(model.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt")))
    np.testing.assert_allclose(mine.encode_image(list(pixels)), images, atol=1e-5, rtol=0)
    np.testing.assert_allclose(mine.encode_image(opaque, decode="reference"), images, atol=1e-5, rtol=0)
    np.testing.assert_allclose(mine.encode_text(TEXTS), texts, atol=1e-5, rtol=0)
    assert (mine.encode_image(opaque) * images).sum(axis=1).min() > 0.99
    assert mine.embed_dim == 24 and mine.kind == "softmax"
    assert mine.scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-5)


def _features(output: Any) -> np.ndarray:
    tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return F.normalize(tensor, dim=-1).numpy()


def test_bf16_is_near(checkpoint: Any, files: list[Path]) -> None:
    config, path = checkpoint("clip", "safetensors")
    exact = clipkit.load(config, pretrained=path, device="cpu")
    short = clipkit.load(config, pretrained=path, device="cpu", precision="bf16")
    images = short.encode_image(files)
    assert images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-2)
    assert (images * exact.encode_image(files)).sum(axis=1).min() > 0.995
    raw = short.encode_text(TEXTS, normalize=False)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, short.encode_text(TEXTS), atol=2e-2)
    assert np.abs(raw - exact.encode_text(TEXTS, normalize=False)).max() > 0, "raw embeddings are bf16's too"
