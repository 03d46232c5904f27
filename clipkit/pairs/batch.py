"""One rank's part of a step, and what could not be used for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bad:
    """A sample that could not be used, and why."""

    sample: int
    where: str
    reason: str
    epoch: int = 0


@dataclass(frozen=True)
class PairBatch:
    """One rank's part of a step.

    Attributes:
        images: uint8 (b, 3, H, W) pictures, or (b, v, 3, H, W) v views of each, or float (b, F) cached encodings;
            None where only texts are read.
        texts: int64 (t, L) tokens, or float (t, F) cached encodings; t = b unless a sample brings several captions.
            None where only pictures are read.
        image_ids: int64 (b,) each sample.
        text_ids: int64 (t,) sample of each caption; equal ids are positives. A negative id is that of a hard negative,
            which belongs to no sample.
        bad: samples that were replaced.
        items: (epoch, sample) that the batch was asked for; where ``image_ids`` has another, it is a substitute.
        truncated: (epoch, sample) of each caption that is longer than the text tower's context.
        labels: int64 (b,) of each sample, if they were asked for; see ``label_id``.
        image_groups, text_groups: int64 (b, G) and (t, G), if there is a false-negative guard: samples that share a
            group are no negatives of each other; see ``clipkit.pairs.guard``.
        text_shift: float (t,) added to the scores of each text (the logQ correction), or None.
        text_places: int64 (t,) place of each caption among its sample's, -1 for a hard negative that was made for it,
            or None.
        mined: how many of the texts, the last ones, are hard negatives that are other samples' texts, with their ids.
    """

    images: Tensor | None
    texts: Tensor | None
    image_ids: Tensor
    text_ids: Tensor
    bad: tuple[Bad, ...] = ()
    items: tuple[tuple[int, int], ...] = ()
    truncated: tuple[tuple[int, int], ...] = ()
    labels: Tensor | None = None
    image_groups: Tensor | None = None
    text_groups: Tensor | None = None
    text_shift: Tensor | None = None
    text_places: Tensor | None = None
    mined: int = 0

    def own_texts(self) -> Tensor:
        """bool (t,): the texts that belong to the batch's samples and are no hard negatives."""
        own = self.text_ids >= 0
        own[len(own) - self.mined :] = False
        return own

    def to(self, device: torch.device) -> PairBatch:
        """The batch on ``device``."""
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        moved: dict[str, Any] = {n: t.to(device, non_blocking=True) for n, t in tensors.items()}
        return replace(self, **moved)


def label_id(label: object) -> int:
    """A label as a number of 63 bits, the same in every run and process: the start of its name's BLAKE2b digest."""
    digest = hashlib.blake2b(str(label).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
