"""Step 2, encode: towers from open_clip, timm and transformers, joined into a dual encoder."""

from clipkit.encoders.build import add_two_views, build, rebuild, save_description
from clipkit.encoders.dual import DualEncoder, Embeddings, Tower
from clipkit.encoders.from_open_clip import from_open_clip
from clipkit.encoders.from_pair import from_pair
from clipkit.encoders.from_transformers import from_transformers
from clipkit.encoders.tokens import Tokenizer
from clipkit.encoders.two_views import TwoViews, TwoViewsSettings

__all__ = [
    "DualEncoder",
    "Embeddings",
    "Tokenizer",
    "Tower",
    "TwoViews",
    "TwoViewsSettings",
    "add_two_views",
    "build",
    "from_open_clip",
    "from_pair",
    "from_transformers",
    "rebuild",
    "save_description",
]
