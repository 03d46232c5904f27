"""Pictures with labels from shards: what probes and fine-tuning read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.evaluation.finetune import Pictures
from clipkit.pairs import PictureSpec, ShardSet, decode_image, fit
from clipkit.pairs.captions import whole_characters

IN_MEMORY = 2 << 30  # bytes of decoded pictures that are kept; more are decoded again each time
_READERS = 4


class FromShards:
    """Pictures that are decoded when they are asked for: a ``Pictures``.

    Args:
        samples: the samples of ``shards`` that they are.
    """

    def __init__(self, shards: ShardSet, spec: PictureSpec, samples: Sequence[int]) -> None:
        self.shards = shards
        self.spec = spec
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: Any, /) -> Tensor:
        """int64 (B,) -> uint8 (B, 3, size, size), the evaluation views."""
        with ThreadPoolExecutor(_READERS) as pool:
            return torch.stack(list(pool.map(self._view, [self.samples[row] for row in rows.tolist()])))

    def _view(self, sample: int) -> Tensor:
        return fit(decode_image(self.shards.read_picture(sample), self.shards.where(sample)), self.spec)


@dataclass(frozen=True)
class Labelled:
    """Pictures with a label each.

    Attributes:
        pictures: uint8 (N, 3, size, size), a tensor or decoded when asked for.
        labels: their N labels.
        bad: a line about each picture that was left out.
    """

    pictures: Pictures
    labels: list[str]
    bad: tuple[str, ...] = ()

    def part(self, rows: np.ndarray) -> Labelled:
        """The pictures of ``rows``, int (n,)."""
        if isinstance(self.pictures, FromShards):
            own = self.pictures
            chosen: Pictures = FromShards(own.shards, own.spec, [own.samples[row] for row in rows.tolist()])
        else:
            chosen = self.pictures[torch.from_numpy(rows)]
        return Labelled(chosen, [self.labels[row] for row in rows.tolist()])


def read_labelled(shards: ShardSet, spec: PictureSpec) -> Labelled:
    """All samples of ``shards`` in the view that a tower evaluates; pictures that cannot be decoded are left out.

    Raises:
        ClipkitError: a sample without a label, or no picture that can be read.
    """
    labels = []
    for sample in range(len(shards)):
        label = shards.read_record(sample)[0].get("label")
        if label is None:
            raise ClipkitError(
                f"{shards.where(sample)} has no label: give a folder with a folder of pictures per class, or shards "
                "with a .cls or with a label in the json"
            )
        labels.append(whole_characters(str(label)))
    every = FromShards(shards, spec, range(len(shards)))
    keep = len(shards) * 3 * spec.size**2 <= IN_MEMORY
    views: list[Tensor] = []
    good: list[int] = []
    bad: list[str] = []

    def read(sample: int) -> Tensor | str:
        try:
            view = every._view(sample)
        except ClipkitError as error:
            return str(error)
        return view if keep else view[:0]

    with ThreadPoolExecutor(_READERS) as pool:
        for sample, view in enumerate(pool.map(read, range(len(shards)))):
            if isinstance(view, str):
                bad.append(view)
            else:
                good.append(sample)
                views += [view] if keep else []
    if not good:
        raise ClipkitError(f"{shards.name}: no picture could be read (first: {bad[0] if bad else 'there is none'})")
    pictures: Pictures = torch.stack(views) if keep else FromShards(shards, spec, good)
    return Labelled(pictures, [labels[sample] for sample in good], tuple(bad))
