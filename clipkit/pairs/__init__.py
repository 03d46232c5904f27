"""Step 1, create pairs: samples from WebDataset shards to batches of two views.

Names are imported when they are first used: preparing data needs shards and indexes, not torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipkit.pairs.augment import Augment as Augment
    from clipkit.pairs.batch import Bad as Bad
    from clipkit.pairs.batch import PairBatch as PairBatch
    from clipkit.pairs.decode import decode_image as decode_image
    from clipkit.pairs.mixture import Mixture as Mixture
    from clipkit.pairs.mixture import make_order as make_order
    from clipkit.pairs.order import Order as Order
    from clipkit.pairs.pipes import NOT_PROMISED as NOT_PROMISED
    from clipkit.pairs.pipes import PipeSet as PipeSet
    from clipkit.pairs.pipes import is_pipe as is_pipe
    from clipkit.pairs.remote import is_remote as is_remote
    from clipkit.pairs.resize import PictureSpec as PictureSpec
    from clipkit.pairs.resize import fit as fit
    from clipkit.pairs.resize import normalize as normalize
    from clipkit.pairs.resize import random_crop as random_crop
    from clipkit.pairs.resize import reference_pixels as reference_pixels
    from clipkit.pairs.resize import shrink as shrink
    from clipkit.pairs.shards import Sample as Sample
    from clipkit.pairs.shards import ShardSet as ShardSet
    from clipkit.pairs.shards import join_shards as join_shards
    from clipkit.pairs.shards import open_shards as open_shards
    from clipkit.pairs.stream import PairReader as PairReader
    from clipkit.pairs.stream import ReadPicture as ReadPicture
    from clipkit.pairs.stream import ReadTexts as ReadTexts
    from clipkit.pairs.stream import TooLong as TooLong
    from clipkit.pairs.stream import step_items as step_items

_HOMES = {
    "Augment": "augment",
    "Bad": "batch",
    "Mixture": "mixture",
    "NOT_PROMISED": "pipes",
    "Order": "order",
    "PairBatch": "batch",
    "PairReader": "stream",
    "PictureSpec": "resize",
    "PipeSet": "pipes",
    "ReadPicture": "stream",
    "ReadTexts": "stream",
    "Sample": "shards",
    "ShardSet": "shards",
    "TooLong": "stream",
    "decode_image": "decode",
    "fit": "resize",
    "is_pipe": "pipes",
    "is_remote": "remote",
    "join_shards": "shards",
    "make_order": "mixture",
    "normalize": "resize",
    "open_shards": "shards",
    "random_crop": "resize",
    "reference_pixels": "resize",
    "shrink": "resize",
    "step_items": "stream",
}

__all__ = [
    "NOT_PROMISED",
    "Augment",
    "Bad",
    "Mixture",
    "Order",
    "PairBatch",
    "PairReader",
    "PictureSpec",
    "PipeSet",
    "ReadPicture",
    "ReadTexts",
    "Sample",
    "ShardSet",
    "TooLong",
    "decode_image",
    "fit",
    "is_pipe",
    "is_remote",
    "join_shards",
    "make_order",
    "normalize",
    "open_shards",
    "random_crop",
    "reference_pixels",
    "shrink",
    "step_items",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipkit.pairs' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clipkit.pairs.{_HOMES[name]}"), name)
