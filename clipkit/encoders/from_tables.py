"""Two towers over tables of codes: users and items by their numbers and features."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.encoders.dual import DualEncoder, Tower
from clipkit.errors import ClipkitError
from clipkit.pairs import PictureSpec

TABLES = "tables.json"


class TableTrunk(nn.Module):
    """An embedding for each code, added up over the columns, and a network of one hidden layer on top.

    Args:
        sizes: codes of each column; code 0 is the unknown.
        width: of the embeddings and of the output.
    """

    def __init__(self, sizes: list[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        for table in self.tables:
            nn.init.normal_(table.weight, std=1 / math.sqrt(width))  # type: ignore[arg-type]
        self.network = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, codes: Tensor) -> Tensor:
        """int64 (B, F) -> (B, width)."""
        total = torch.stack([table(codes[:, i]) for i, table in enumerate(self.tables)]).sum(0)
        return total + self.network(total)


@dataclass(frozen=True)
class Vocabulary:
    """What the codes stand for, saved beside the weights: ``{"users": {...}, "items": {...}}`` of ``CodeTable``s as
    plain data."""

    tables: dict[str, Any]

    def save_pretrained(self, folder: Path) -> None:
        """Write ``tables.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLES).write_text(json.dumps(self.tables, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """The inverse of ``save_pretrained``.

        Raises:
            ClipkitError: the file is missing or damaged.
        """
        try:
            return cls(json.loads((folder / TABLES).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ClipkitError(
                f"{folder / TABLES}: the users and items of the model cannot be read ({error})"
            ) from None


def from_tables(
    sizes: dict[str, list[int]], embed_dim: int, vocabulary: Vocabulary, scale_init: float = 1 / 0.07
) -> DualEncoder:
    """A two-tower model: users in the place of pictures, items in that of texts.

    Args:
        sizes: codes of each column of ``users`` and of ``items``.
        embed_dim: dimensions of the shared space.
        vocabulary: what the codes stand for.
        scale_init: start of the inverse temperature.
    """
    users, items = (Tower(TableTrunk(sizes[name], embed_dim)) for name in ("users", "items"))
    description = {"kind": "tables", "sizes": sizes, "embed_dim": embed_dim}
    return DualEncoder(users, items, PictureSpec(), None, math.log(scale_init), None, description, (vocabulary,))
