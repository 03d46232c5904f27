"""Dual encoders from transformers: CLIP, SigLIP and their relatives, by name or local directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.encoders.dual import DualEncoder, Tower
from clipkit.encoders.text_length import prove_cut
from clipkit.encoders.tokens import transformers_tokenizer
from clipkit.errors import ClipkitError
from clipkit.pairs import PictureSpec


class VisionHalf(nn.Module):
    """The vision half of a transformers dual encoder: pixels -> projected features."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.vision_model
        self.projection = getattr(model, "visual_projection", None) or nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(self.encoder(pixel_values=pixels).pooler_output)


class TextHalf(nn.Module):
    """The text half of a transformers dual encoder: tokens -> projected features.

    No attention mask is passed: CLIP's causal tower pools at the end token and SigLIP was trained with its padding
    in view, and that is how their own processors call them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.text_model
        self.projection = getattr(model, "text_projection", None) or nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.projection(self.encoder(input_ids=tokens).pooler_output)


def from_transformers(source: str | Path, *, config_only: bool = False) -> DualEncoder:
    """The dual encoder at ``source``, a transformers name or a directory.

    Args:
        config_only: only the architecture, with random weights.

    Raises:
        ClipkitError: nothing there, or no dual encoder that is known to work.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each file that is read from the disk
    try:
        config = AutoConfig.from_pretrained(str(source))
        if not hasattr(config, "vision_config") or not hasattr(config, "text_config"):
            raise ClipkitError(
                f"{source}: a {config.model_type} model has no image and text tower; use a CLIP or SigLIP"
            )
        model = (
            AutoModel.from_config(config)
            if config_only
            else AutoModel.from_pretrained(str(source), dtype=torch.float32)
        )
        processor = AutoImageProcessor.from_pretrained(str(source))
    except ClipkitError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClipkitError(f"{source}: transformers cannot load it: {first_line}") from None
    longest = getattr(config.text_config, "max_position_embeddings", None)
    tokenizer = transformers_tokenizer(source, longest)
    image, text = Tower(VisionHalf(model)), Tower(TextHalf(model))
    picture = _picture(processor)
    _check_halves(model, image, text, picture, tokenizer(["a photo"]), str(source))
    prove_cut(text, tokenizer)
    bias = getattr(model, "logit_bias", None)
    with torch.no_grad():
        embed_dim = image.eval()(torch.zeros(1, 3, picture.size, picture.size)).shape[-1]
    return DualEncoder(
        image.train(),
        text.train(),
        picture,
        tokenizer,
        log_scale=float(model.logit_scale.detach()) if hasattr(model, "logit_scale") else math.log(1 / 0.07),
        bias=float(bias.detach()) if bias is not None else None,
        description={"kind": "transformers", "name": str(source), "embed_dim": int(embed_dim)},
        parts=(config, processor),
    )


def _picture(processor: Any) -> PictureSpec:
    """The processor's settings, and the processor itself as the reference."""
    size = dict(processor.size)
    crop = dict(getattr(processor, "crop_size", None) or {})
    squash = "height" in size
    side = int(size["height"] if squash else crop.get("height") or size["shortest_edge"])

    def reference(image: Any) -> Tensor:
        return processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    return PictureSpec(
        size=side,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        resize="squash" if squash else "shortest",
        edge=int(size["shortest_edge"]) if "shortest_edge" in size else None,
        interpolation="bilinear" if int(processor.resample) == 2 else "bicubic",
        reference=reference,
    )


@torch.no_grad()
def _check_halves(model: Any, image: Tower, text: Tower, picture: PictureSpec, tokens: Tensor, source: str) -> None:
    """Refuse a model whose own features are not the halves' output, instead of returning other numbers."""
    model.eval()
    pixels = torch.linspace(-1, 1, 3 * picture.size**2).view(1, 3, picture.size, picture.size)
    for half, theirs in (
        (image.eval()(pixels), model.get_image_features(pixel_values=pixels)),
        (text.eval()(tokens), model.get_text_features(input_ids=tokens)),
    ):
        expected = theirs if isinstance(theirs, Tensor) else theirs.pooler_output
        if half.shape != expected.shape or not torch.allclose(half, expected, atol=1e-5, rtol=1e-4):
            kind = type(model).__name__
            raise ClipkitError(f"{source}: {kind} computes its features in a way that clipkit does not know")
