"""Step 1, create pairs: samples from WebDataset shards to batches of two views."""

from clipkit.pairs.decode import PictureSpec, decode_image, fit, normalize, random_crop, reference_pixels, shrink
from clipkit.pairs.order import Order
from clipkit.pairs.remote import is_remote
from clipkit.pairs.shards import Sample, ShardSet, open_shards
from clipkit.pairs.stream import Bad, PairBatch, PairReader, ReadPicture, ReadTexts, step_items, stream

__all__ = [
    "Bad",
    "Order",
    "PairBatch",
    "PairReader",
    "PictureSpec",
    "ReadPicture",
    "ReadTexts",
    "Sample",
    "ShardSet",
    "decode_image",
    "fit",
    "is_remote",
    "normalize",
    "open_shards",
    "random_crop",
    "reference_pixels",
    "shrink",
    "step_items",
    "stream",
]
