"""Dual encoders from open_clip: by name with its pretrained weights, or from a JSON config."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from clipkit.encoders.dual import DualEncoder, Tower
from clipkit.encoders.text_length import prove_cut
from clipkit.encoders.tokens import Tokenizer
from clipkit.errors import ClipkitError, did_you_mean
from clipkit.pairs import PictureSpec

CONFIGS = Path(__file__).parent / "configs"


class CausalText(nn.Module):
    """open_clip's text tower, made to accept rows shorter than its context.

    Its causal mask is a buffer of the full length; a shorter batch gets the mask's corner instead. (The position
    embedding is cut by the tower itself.)
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def extra_repr(self) -> str:
        names = ("pool_type", "pad_id", "eos_id", "use_pad_mask", "heads")  # what the weights do not say
        return ", ".join(f"{name}={getattr(self.tower, name)}" for name in names if hasattr(self.tower, name))

    def forward(self, tokens: Tensor) -> Tensor:
        mask = getattr(self.tower, "attn_mask", None)
        length = tokens.shape[1]
        if mask is None or mask.shape[0] == length or getattr(self.tower, "cls_emb", None) is not None:
            return self.tower(tokens)
        # A shallow copy with a mask of its own: swapping the shared buffer (as functional_call does) would pull it
        # from under another thread that encodes at the same time.
        tower = copy.copy(self.tower)
        tower._buffers = {**self.tower._buffers, "attn_mask": mask[:length, :length]}
        return tower(tokens)


def open_clip_names() -> list[str]:
    """Names that ``--model`` takes: clipkit's own configs and open_clip's."""
    import open_clip

    return [p.stem for p in sorted(CONFIGS.glob("*.json"))] + open_clip.list_models()


@contextmanager
def _no_log() -> Iterator[None]:
    """open_clip logs what it then raises, and people would read it twice."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def read_model_config(model: str) -> tuple[str, dict[str, Any]]:
    """Name and config of an open_clip model name, one of clipkit's configs, or a JSON file.

    Raises:
        ClipkitError: unknown name, or a file that is no model config.
    """
    import open_clip

    path = Path(model)
    if path.suffix == ".json" or path.is_file():
        if not path.is_file():
            raise ClipkitError(f"{model}: no such model config")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ClipkitError(f"{model}: not valid JSON ({error})") from None
        if isinstance(config, dict) and isinstance(config.get("model_cfg"), dict):  # as on the hub
            config = {**config["model_cfg"], "preprocess_cfg": config.get("preprocess_cfg") or {}}
        config = config if isinstance(config, dict) else {}
        missing = [k for k in ("embed_dim", "vision_cfg", "text_cfg") if k not in config]
        if missing:
            raise ClipkitError(f"{model}: a model config needs {', '.join(missing)} (open_clip's format)")
        return path.stem, config
    own = CONFIGS / f"{model}.json"
    if own.is_file():
        return model, json.loads(own.read_text(encoding="utf-8"))
    config = open_clip.get_model_config(model)
    if config is None:
        hint = did_you_mean(model, open_clip_names())
        raise ClipkitError(f"unknown model {model!r}{hint or ': give an open_clip name or a JSON config'}")
    return model, config


def from_open_clip(
    model: str,
    pretrained: str | None = None,
    *,
    config: dict[str, Any] | None = None,
    image_size: int | None = None,
    picture: dict[str, Any] | None = None,
    tokenizer_folder: Path | None = None,
) -> DualEncoder:
    """A dual encoder with open_clip's towers.

    Args:
        model: open_clip name, one of clipkit's configs (``small``), or a JSON file.
        pretrained: an open_clip tag (fetched by open_clip on first use) or a checkpoint file.
        config: the model's config, if it is known already (``model`` is then only its name).
        image_size: side of the picture, if not the config's.
        picture: saved settings of the ``PictureSpec``, if they are not the model's own.
        tokenizer_folder: a saved tokenizer to use instead of the one that the config names.

    Raises:
        ClipkitError: unknown model or tag, weights that cannot be fetched or do not fit.
    """
    import open_clip
    from open_clip.model import CustomTextCLIP
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from open_clip.transformer import QuickGELU

    if config is None:
        model, config = read_model_config(model)
    if "multimodal_cfg" in config:
        raise ClipkitError(f"{model}: CoCa configs train a captioner as well; use a CLIP config")
    text_config = dict(config["text_cfg"])
    if tokenizer_folder is not None and text_config.get("hf_model_name"):
        text_config |= {"hf_model_name": str(tokenizer_folder), "hf_model_pretrained": False}
    try:
        if pretrained and pretrained in open_clip.list_pretrained_tags_by_model(model):
            with _no_log():
                net: Any = open_clip.create_model(
                    model, pretrained=pretrained, force_custom_text=True, force_image_size=image_size
                )
        else:
            options = {k: v for k, v in config.items() if k not in ("custom_text", "preprocess_cfg")}
            vision = dict(config["vision_cfg"], **({"image_size": image_size} if image_size else {}))
            net = CustomTextCLIP(**{**options, "vision_cfg": vision, "text_cfg": text_config})
            if pretrained:
                _load_weights(net, model, pretrained)
    except ClipkitError:
        raise
    except Exception as error:  # hub, file and shape errors of many kinds
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClipkitError(f"model {model!r} with weights {pretrained!r} could not be made: {first_line}") from None

    preprocess = {**getattr(net.visual, "preprocess_cfg", {}), **config.get("preprocess_cfg", {})}
    side = net.visual.image_size
    side = int(side[0] if isinstance(side, (tuple, list)) else side)
    preprocess["size"] = side
    if picture is not None:
        preprocess |= {
            "size": picture["size"],
            "mean": tuple(picture["mean"]),
            "std": tuple(picture["std"]),
            "interpolation": picture["interpolation"],
            "resize_mode": picture["resize"],
            "fill_color": picture["fill"],
        }
    cfg = PreprocessCfg(**preprocess)
    spec = PictureSpec(
        size=cfg.size if isinstance(cfg.size, int) else cfg.size[0],
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        resize=cfg.resize_mode,
        interpolation="bilinear" if cfg.interpolation == "bilinear" else "bicubic",
        fill=cfg.fill_color,
        reference=image_transform_v2(cfg, is_train=False),
    )
    tokenizer = _tokenizer(text_config, tokenizer_folder)
    image, text = Tower(net.visual), Tower(CausalText(net.text))
    prove_cut(text, tokenizer)
    made = dict(config, vision_cfg={**config["vision_cfg"], "image_size": side})
    if any(isinstance(m, QuickGELU) for m in net.modules()):  # some weights (OpenAI's) ask for it, not the config
        made["quick_gelu"] = True
    return DualEncoder(
        image,
        text,
        spec,
        tokenizer,
        log_scale=float(net.logit_scale.detach()),
        bias=float(net.logit_bias.detach()) if net.logit_bias is not None else None,
        description={"kind": "open_clip", "name": model, "config": made, "embed_dim": config["embed_dim"]},
        parts=(net.text.config,) if hasattr(net.text, "config") else (),
    )


def _load_weights(net: nn.Module, model: str, pretrained: str) -> None:
    """Weights from a file, open_clip's or clipkit's own ``model.safetensors`` of such a model."""
    import open_clip

    path = Path(pretrained)
    if not path.is_file():
        tags = open_clip.list_pretrained_tags_by_model(model)
        known = f"tags of {model}: {', '.join(tags)}" if tags else f"{model} has no pretrained tags"
        raise ClipkitError(f"no weights {pretrained!r}: neither a file nor a tag; {known}")
    own = _own_weights(path)
    if own is not None:
        net.load_state_dict(own)
    else:
        open_clip.load_checkpoint(net, str(path), strict=True)


def _own_weights(path: Path) -> dict[str, Tensor] | None:
    """The weights of a clipkit checkpoint (both towers in one file) under open_clip's names; None for other files."""
    if path.suffix != ".safetensors":
        return None
    tensors = load_file(path)
    if "log_scale" not in tensors:
        return None
    names = {"image.trunk.": "visual.", "text.trunk.tower.": "text.", "log_scale": "logit_scale", "bias": "logit_bias"}
    renamed = {}
    for name, tensor in tensors.items():
        if name != "bias":  # the sigmoid loss starts its own
            old = next((prefix for prefix in names if name.startswith(prefix)), "")
            renamed[names.get(old, "") + name[len(old) :]] = tensor.squeeze() if name == "log_scale" else tensor
    return renamed


def _tokenizer(text: dict[str, Any], folder: Path | None) -> Tokenizer:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    length = int(text.get("context_length") or 77)
    options = dict(text.get("tokenizer_kwargs") or {})
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        name = str(folder)
    if not name:
        simple = SimpleTokenizer(context_length=length, **options)
        if options.get("clean", "lower") == "lower":
            simple.clean_fn = partial(_clean_lower, otherwise=simple.clean_fn)
        return Tokenizer(simple, length, 0, "open_clip")
    try:
        inner = HFTokenizer(name, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **options)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClipkitError(f"tokenizer {name!r} could not be loaded: {first_line}") from None
    return Tokenizer(inner, length, int(inner.tokenizer.pad_token_id or 0), "open_clip")


def _clean_lower(text: str, otherwise: Callable[[str], str]) -> str:
    """``otherwise``, open_clip's own cleaning, in a tenth of the time for plain text, in which ftfy finds nothing."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split()).lower()
    return otherwise(text)
