"""From a config, or from a saved description, to a dual encoder; and what is frozen in it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipkit.config import ModelConfig
from clipkit.encoders.dual import DualEncoder
from clipkit.encoders.from_open_clip import from_open_clip
from clipkit.encoders.from_pair import from_pair
from clipkit.encoders.from_tables import Vocabulary, from_tables
from clipkit.encoders.from_transformers import from_transformers
from clipkit.encoders.two_views import TwoViews, TwoViewsSettings
from clipkit.errors import ClipkitError
from clipkit.pairs import PictureSpec

MODEL_FILE = "model.json"
TOWER_FOLDER = "text"  # tokenizer, config and processor of transformers models


def build(
    config: ModelConfig,
    *,
    sigmoid: bool = False,
    scale_init: float | None = None,
    seed: int = 0,
    towers: tuple[str, ...] = ("image", "text"),
) -> DualEncoder:
    """The dual encoder that ``config`` describes, with what it locks locked.

    Fresh weights are a function of ``seed``. The temperature starts at ``scale_init``, at the weights' own value if
    there are pretrained weights, or at 1/0.07 (InfoNCE) and 10 (sigmoid, with a bias of -10: Zhai et al. 2023).

    Args:
        towers: which are wanted. A model of pictures alone needs no --text-model, and one of texts no --image-model.

    Raises:
        ClipkitError: an unknown model, weights that cannot be had, or half a pair of towers.
    """
    torch.manual_seed(seed)
    named = {"image": config.image_model, "text": config.text_model}
    if any(named[name] for name in towers):
        for name in towers:
            if not named[name]:
                raise ClipkitError(f"a pair of towers needs both names: --{name}-model is missing")
        model = from_pair(
            config.image_model if "image" in towers else None,
            config.text_model if "text" in towers else None,
            config.embed_dim,
            image_pretrained=config.image_pretrained,
            text_pretrained=config.text_pretrained,
            image_size=config.image_size,
        )
        fresh = True
    elif any(named.values()):
        raise ClipkitError(f"this recipe trains the {towers[0]} tower alone: pass --{towers[0]}-model, or --model")
    elif Path(config.model).is_dir():
        model = from_transformers(config.model)
        fresh = False
    else:
        model = from_open_clip(config.model, config.pretrained, image_size=config.image_size)
        fresh = config.pretrained is None
    keep_towers(model, towers)
    if config.image_size and model.image is not None:
        _check_size(model, config.image_size)
    set_temperature(model, sigmoid, scale_init, fresh)
    for name, lock, pretrained in (
        ("image", config.lock_image, config.image_pretrained),
        ("text", config.lock_text, config.text_pretrained),
    ):
        if not lock:
            continue
        model.tower(name).lock()
        if fresh and not (named[name] and pretrained):
            weights = f"without --no-{name}-pretrained" if named[name] else "with --pretrained"
            warnings.warn(
                f"--lock-{name} keeps a tower of random weights, in which nothing is learned: take one {weights}",
                stacklevel=2,
            )
    return model


def keep_towers(model: DualEncoder, towers: Sequence[str]) -> None:
    """Drop the towers that are not named in ``towers``, and remember that for ``rebuild``."""
    for name in ("image", "text"):
        if name not in towers:
            setattr(model, name, None)
    model.description["towers"] = list(model.towers)


def add_two_views(model: DualEncoder, settings: TwoViewsSettings) -> None:
    """Give ``model`` what a method of two views trains beside its image tower."""
    was_training = model.training
    with torch.no_grad():
        blank = torch.zeros(2, 3, model.picture.size, model.picture.size, device=model.device)
        width = model.eval().tower("image").trunk(blank).shape[1]
    model.train(was_training)
    model.two_views = TwoViews(model.tower("image"), width, settings)
    model.description["two_views"] = model.two_views.describe()


def _check_size(model: DualEncoder, size: int) -> None:
    """Refuse a picture size that the tower was not made for, before a run and not in its first step."""
    try:
        with torch.no_grad():
            model.tower("image").eval()(torch.zeros(1, 3, model.picture.size, model.picture.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ClipkitError(
            f"--image-size {size} does not fit the picture tower ({str(error).splitlines()[0]}); leave it out, or "
            f"take a multiple of the tower's patches"
        ) from None
    finally:
        model.tower("image").train()


def set_temperature(model: DualEncoder, sigmoid: bool, scale_init: float | None, fresh: bool) -> None:
    """Start the temperature, and add or drop the bias, as the loss wants them."""
    if scale_init is None and (fresh or (sigmoid and model.bias is None)):
        scale_init = 10.0 if sigmoid else 1 / 0.07
    if scale_init is not None:
        if not scale_init > 0:
            raise ClipkitError(f"--scale-init is {scale_init}; it must be above 0")
        nn.init.constant_(model.log_scale, math.log(scale_init))
    if not sigmoid:
        model.bias = None
    elif model.bias is None:
        model.bias = nn.Parameter(torch.tensor([-10.0]))


def save_description(model: DualEncoder, folder: Path) -> None:
    """Write what ``rebuild`` needs besides the weights: ``model.json``, tokenizer, configs."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.has_tokenizer:
        model.tokenizer.save(folder / TOWER_FOLDER)
    for part in model.parts:
        part.save_pretrained(folder / TOWER_FOLDER)
    described = {
        **model.description,
        "picture": model.picture.to_dict(),
        "bias": model.bias is not None,
        "locked": {name: tower.locked for name, tower in model.towers.items()},
    }
    (folder / MODEL_FILE).write_text(json.dumps(described, indent=2), encoding="utf-8")


def rebuild(folder: Path) -> DualEncoder:
    """The architecture saved in ``folder``, with random weights; needs no network.

    Raises:
        ClipkitError: no description there, or one of another version.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ClipkitError(f"{folder}: no {MODEL_FILE}, so this is no clipkit checkpoint")
    saved = folder / TOWER_FOLDER
    try:
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = described["kind"]
    except (ValueError, KeyError, TypeError):
        raise ClipkitError(f"{path}: damaged, it does not describe a model; use another checkpoint") from None
    if kind == "open_clip":
        model = from_open_clip(
            described["name"], config=described["config"], picture=described["picture"], tokenizer_folder=saved
        )
    elif kind == "pair":
        model = from_pair(
            described["image_model"],
            str(saved) if described["text_model"] else None,
            described["embed_dim"],
            image_pretrained=False,
            text_pretrained=False,
            image_size=described["image_size"],
            pooling=described["pooling"],
            image_head=described["image_head"],
            text_head=described["text_head"],
            context_length=described["context_length"],
        )
    elif kind == "tables":
        model = from_tables(described["sizes"], described["embed_dim"], Vocabulary.load(saved))
    elif kind == "transformers":
        model = from_transformers(saved, config_only=True)
    else:
        raise ClipkitError(f"{path}: unknown kind of model {kind!r}; was it written by a newer clipkit?")
    if described["picture"] != model.picture.to_dict():
        model.picture = PictureSpec.from_dict(described["picture"])
    model.description = {k: v for k, v in described.items() if k not in ("picture", "bias", "locked")}
    model.bias = nn.Parameter(torch.zeros(1)) if described["bias"] else None
    keep_towers(model, described.get("towers", ("image", "text")))
    if described.get("two_views"):
        model.two_views = TwoViews.from_description(model.tower("image"), described["two_views"])
    for name, locked in described["locked"].items():
        if locked:
            model.tower(name).lock()
    return model
