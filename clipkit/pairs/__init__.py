"""Step 1, create pairs: samples from WebDataset shards to batches of two views."""

from clipkit.pairs.augment import Augment
from clipkit.pairs.decode import PictureSpec, decode_image, fit, normalize, random_crop, reference_pixels, shrink
from clipkit.pairs.mixture import Mixture, make_order
from clipkit.pairs.order import Order
from clipkit.pairs.pipes import NOT_PROMISED, PipeSet, is_pipe
from clipkit.pairs.remote import is_remote
from clipkit.pairs.shards import Sample, ShardSet, join_shards, open_shards
from clipkit.pairs.stream import Bad, PairBatch, PairReader, ReadPicture, ReadTexts, step_items, stream

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
    "stream",
]
