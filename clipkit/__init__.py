"""clipkit aligns images and text in one embedding space.

>>> import clipkit
>>> model = clipkit.load("runs/starter")
>>> model.encode_text(["a red bird"]).shape
(1, 384)

The public face is small and lazy: importing clipkit loads neither torch nor any other heavy package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clipkit.errors import ClipkitError

if TYPE_CHECKING:
    from clipkit.config import Config as Config
    from clipkit.inference import Aligner as Aligner
    from clipkit.inference import Classifier as Classifier
    from clipkit.inference import Index as Index
    from clipkit.inference import load as load
    from clipkit.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "load": "clipkit.inference",
    "Aligner": "clipkit.inference",
    "Classifier": "clipkit.inference",
    "Index": "clipkit.inference",
    "train": "clipkit.train",
    "Config": "clipkit.config",
}

__all__ = ["Aligner", "Classifier", "ClipkitError", "Config", "Index", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
