"""Dual encoders from a timm image tower and a transformers text tower, joined by linear heads; or one of them alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.encoders.dual import DualEncoder, Tower
from clipkit.encoders.heads import make_head
from clipkit.encoders.text_length import prove_cut
from clipkit.encoders.tokens import transformers_tokenizer
from clipkit.errors import ClipkitError, did_you_mean
from clipkit.pairs import PictureSpec

CONTEXT_LENGTH = 77  # as CLIP's


class PooledText(nn.Module):
    """A transformers encoder, pooled over the tokens that are no padding.

    Args:
        encoder: any transformers encoder that takes ``input_ids`` and ``attention_mask``.
        pad_id: the padding token.
        pooling: ``mean`` (over the mask) or ``cls`` (the first token).
    """

    def __init__(self, encoder: nn.Module, pad_id: int, pooling: str = "mean") -> None:
        super().__init__()
        self.encoder = encoder
        self.pad_id = pad_id
        self.pooling = pooling

    def extra_repr(self) -> str:
        return f"pad_id={self.pad_id}, pooling={self.pooling}"  # what the weights do not say, for the fingerprint

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 (B, L) -> (B, width)."""
        mask = (tokens != self.pad_id).long()
        hidden_BLW = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            return hidden_BLW[:, 0]
        weights_BL1 = mask.unsqueeze(-1).to(hidden_BLW.dtype)
        return (hidden_BLW * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1)


def timm_trunk(name: str, pretrained: bool, image_size: int | None = None) -> tuple[nn.Module, int, PictureSpec]:
    """A timm model without its classifier: module, width of its features, what it wants to see.

    Raises:
        ClipkitError: timm has no such model, or its weights cannot be fetched.
    """
    import timm

    options: dict[str, Any] = {}
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ClipkitError(f"--image-model: timm has no model {name!r}{hint or '; see timm.list_models()'}")
    if image_size and name.startswith(("vit", "deit", "eva", "beit", "swin", "test_vit")):
        options["img_size"] = image_size
    try:
        trunk = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # hub and shape errors of many kinds
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "; without a network pass --no-image-pretrained to start from random weights" if pretrained else ""
        raise ClipkitError(f"--image-model {name}: {first_line}{fix}") from None
    cfg = timm.data.resolve_model_data_config(trunk)
    side = image_size or cfg["input_size"][-1]
    picture = PictureSpec(
        size=side,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation="bilinear" if cfg["interpolation"] == "bilinear" else "bicubic",
    )
    was_training = trunk.training
    with torch.no_grad():
        width = trunk.eval()(torch.zeros(1, 3, side, side)).shape[-1]
    return trunk.train(was_training), int(width), picture


def transformers_trunk(
    source: str | Path, pretrained: bool, pooling: str = "mean", context_length: int | None = None
) -> tuple[PooledText, int, Any]:
    """A transformers text encoder: module, width, tokenizer.

    Args:
        source: a transformers name or a directory with its config (and weights) and tokenizer.
        pretrained: load the weights; otherwise only the architecture.

    Raises:
        ClipkitError: nothing there, or no encoder.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each file that is read from the disk
    tokenizer = transformers_tokenizer(source, context_length)
    try:
        config = AutoConfig.from_pretrained(str(source))
        encoder = (
            AutoModel.from_pretrained(str(source), dtype=torch.float32) if pretrained else AutoModel.from_config(config)
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClipkitError(f"--text-model {source}: {first_line}") from None
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # unused weights would stall DDP, which waits for their gradient
    positions = int(getattr(config, "max_position_embeddings", tokenizer.context_length) or tokenizer.context_length)
    if config.model_type in ("roberta", "xlm-roberta", "mpnet"):
        positions -= 2  # their positions start behind the padding index
    tokenizer.context_length = min(tokenizer.context_length, positions)
    return PooledText(encoder, tokenizer.pad_id, pooling), int(config.hidden_size), tokenizer


def from_pair(
    image_model: str | None,
    text_model: str | None,
    embed_dim: int = 512,
    *,
    image_pretrained: bool = True,
    text_pretrained: bool = True,
    image_size: int | None = None,
    pooling: str = "mean",
    image_head: dict[str, Any] | None = None,
    text_head: dict[str, Any] | None = None,
    context_length: int | None = CONTEXT_LENGTH,
) -> DualEncoder:
    """A dual encoder of timm model ``image_model`` and transformers model ``text_model``.

    Args:
        image_model, text_model: names; without one of them the model is the other's trunk alone, without a head.
        embed_dim: dimensions of the shared space, for two towers.
        image_head, text_head: descriptions for ``make_head``; by default linear, or for one tower the identity.
        context_length: tokens per caption, if the text model takes that many.

    Raises:
        ClipkitError: a name is unknown, or weights cannot be fetched.
    """
    image = text = tokenizer = None
    picture = PictureSpec()
    parts: tuple[Any, ...] = ()
    alone = image_model is None or text_model is None
    if image_model is not None:
        trunk, width, picture = timm_trunk(image_model, image_pretrained, image_size)
        embed_dim = width if alone else embed_dim
        image_head = image_head or _head(width, embed_dim, alone)
        image = Tower(trunk, make_head(image_head))
    if text_model is not None:
        encoder, width, tokenizer = transformers_trunk(text_model, text_pretrained, pooling, context_length)
        embed_dim = width if alone else embed_dim
        text_head = text_head or _head(width, embed_dim, alone)
        text = Tower(encoder, make_head(text_head))
        prove_cut(text, tokenizer)
        parts = (encoder.encoder.config,)
    return DualEncoder(
        image,
        text,
        picture,
        tokenizer,
        log_scale=math.log(1 / 0.07),
        bias=None,
        description={
            "kind": "pair",
            "image_model": image_model,
            "text_model": text_model and str(text_model),
            "embed_dim": embed_dim,
            "pooling": pooling,
            "image_head": image_head,
            "text_head": text_head,
            "image_size": image_size,
            "context_length": tokenizer.context_length if tokenizer else context_length,
        },
        parts=parts,
    )


def _head(width: int, embed_dim: int, alone: bool) -> dict[str, Any]:
    return {"kind": "identity"} if alone else {"kind": "linear", "width": width, "embed_dim": embed_dim}
