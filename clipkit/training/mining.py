"""Hard negatives mined from what the model itself finds alike.

The embeddings of past steps are kept, up to a whole epoch of them. When a sample has been trained on, the texts of
others that lie nearest to it are looked up, and one of them, that very caption, comes with it the next time, as a key
more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipkit.config import Config
from clipkit.encoders import DualEncoder, Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives.comparison import NO_GROUP
from clipkit.objectives.exchange import gather_plain, row_counts
from clipkit.pairs import PairBatch, PairReader, PipeSet, ShardSet

POOL = 65_536  # texts that are kept: the latest
_LOOKED_AT = 8  # nearest texts of a sample among which one that is no known false negative is sought
_CELLS = 1 << 24  # scores that are held at a time
_NOBODY = -1


class Miner(nn.Module):
    """Finds each sample's hard negative among the texts of past steps, and remembers it until the sample comes again.

    A text that is nearly as near as the sample's own probably belongs to it: the nearest one is taken whose cosine is
    at least ``margin`` below that of the sample's own text (the farthest of them, if there are several), as in
    NV-Retriever (de Souza P. Moreira et al. 2024, "TopK-MarginPos"). What the false-negative guard has grouped with
    the sample is passed by as well.

    Its state are buffers, alike on all processes, and go into a checkpoint with the module.

    Args:
        n_samples: sample ids are in 0 ... n_samples - 1.
        embed_dim: of the embeddings.
        margin: cosine by which a mined text is farther than the own one.
        pool: latest texts that are kept; those of a whole epoch, or ``POOL`` where that is less.
        dtype: of the kept embeddings.
    """

    def __init__(
        self, n_samples: int, embed_dim: int, margin: float, pool: int | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        pool = min(n_samples, POOL) if pool is None else pool
        if n_samples < 1 or pool < 1:
            raise ClipkitError(f"n_samples={n_samples}, pool={pool}: negatives are mined among at least one sample")
        self.margin = margin
        self.pool_PD: Tensor
        self.label_P3: Tensor
        self.place_P: Tensor
        self.mined_N: Tensor
        self.mined_place_N: Tensor
        self.filled: Tensor
        self.register_buffer("pool_PD", torch.zeros(pool, embed_dim, dtype=dtype))
        # sample, group of the caption, group of the picture; see clipkit.pairs.guard
        self.register_buffer("label_P3", torch.full((pool, 3), _NOBODY))
        self.register_buffer("place_P", torch.zeros(pool, dtype=torch.int64))  # of the caption among its sample's
        self.register_buffer("mined_N", torch.full((n_samples,), _NOBODY))
        self.register_buffer("mined_place_N", torch.zeros(n_samples, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(1, dtype=torch.int64))  # texts that have come, in all

    def add_to(self, batch: PairBatch, reader: PairReader) -> PairBatch:
        """``batch`` with the texts that were mined for its samples; as it is where there are none."""
        ids = batch.image_ids.to(self.mined_N.device)
        mined = zip(self.mined_N[ids].tolist(), self.mined_place_N[ids].tolist(), strict=True)
        return reader.with_texts_of(batch, [(other, place) for other, place in mined if other != _NOBODY])

    @torch.no_grad()
    def learn_from(self, embeddings: Embeddings, batch: PairBatch) -> None:
        """Keep this step's texts, and mine for its samples. Every process calls it with its own part of the batch."""
        texts = embeddings.texts
        if texts is None:
            raise ClipkitError("negatives are mined among texts, and the batch has none")
        own = batch.own_texts()
        text_tD, text_ids = texts.detach()[own], batch.text_ids[own]
        places = torch.zeros_like(text_ids) if batch.text_places is None else batch.text_places[own]
        groups = None if batch.text_groups is None else batch.text_groups[own][:, [0, -1]]
        if embeddings.images is None:  # sentences: the first version asks, the second one is kept
            query_bD, text_tD, text_ids, places = text_tD[0::2], text_tD[1::2], text_ids[1::2], places[1::2]
            groups = None if groups is None else groups[1::2]
        else:
            query_bD = embeddings.images.detach()
        if groups is None:
            groups = torch.full((len(text_ids), 2), NO_GROUP, device=text_ids.device)
        counts = row_counts(len(text_tD), text_tD.device)
        label_t4 = torch.cat([text_ids[:, None], groups, places[:, None]], 1)
        self._keep(gather_plain(text_tD, counts), gather_plain(label_t4, counts))
        found_b2 = self._nearest(query_bD.to(self.pool_PD.dtype), text_tD.to(self.pool_PD.dtype), text_ids, batch)
        found_b3 = torch.cat([batch.image_ids[:, None], found_b2], 1)
        for_whom, what, place = gather_plain(found_b3, row_counts(len(found_b3), found_b3.device)).unbind(1)
        self.mined_N[for_whom], self.mined_place_N[for_whom] = what, place

    def _keep(self, text_TD: Tensor, label_T4: Tensor) -> None:
        size = len(self.pool_PD)
        text_TD, label_T4 = text_TD[-size:], label_T4[-size:]
        at = (self.filled + torch.arange(len(text_TD), device=self.filled.device)) % size
        self.pool_PD[at] = text_TD.to(self.pool_PD.dtype)
        self.label_P3[at], self.place_P[at] = label_T4[:, :3], label_T4[:, 3]
        self.filled += len(text_TD)

    def _nearest(self, query_bD: Tensor, text_tD: Tensor, text_ids: Tensor, batch: PairBatch) -> Tensor:
        """(b, 2) sample whose text is the hard negative of each query, or ``_NOBODY``; and the caption's place."""
        ids = batch.image_ids
        limit_b = _farthest_own(query_bD, text_tD, ids, text_ids) - self.margin
        there = min(int(self.filled), len(self.pool_PD))
        pool, labels = self.pool_PD[:there], self.label_P3[:there]
        found = []
        for rows in torch.arange(len(query_bD), device=query_bD.device).split(max(1, _CELLS // there)):
            scores = query_bD[rows] @ pool.T
            unfit = (labels[None, :, 0] == ids[rows, None]) | (scores > limit_b[rows, None])
            best, at = scores.masked_fill_(unfit, -torch.inf).topk(min(_LOOKED_AT, there), 1)
            label_bk3 = labels[at]
            fit = best > -torch.inf
            if batch.image_groups is not None:
                fit &= ~_grouped(batch.image_groups[rows], label_bk3[..., 1:])
            first = fit.to(torch.int8).argmax(1, keepdim=True)
            chosen = at.gather(1, first)[:, 0]
            sample = torch.where(fit.any(1), labels[chosen, 0], _NOBODY)
            found.append(torch.stack([sample, self.place_P[chosen]], 1))
        return torch.cat(found) if found else ids.new_zeros(0, 2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """A checkpoint of before the places were kept has none: the first captions."""
        for name in ("place_P", "mined_place_N"):
            state_dict.setdefault(prefix + name, torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *more)


def _farthest_own(query_bD: Tensor, text_tD: Tensor, ids: Tensor, text_ids: Tensor) -> Tensor:
    """(b,) smallest cosine of each query with a text of its own."""
    cosines = (query_bD @ text_tD.T).masked_fill(ids[:, None] != text_ids[None, :], torch.inf)
    return cosines.amin(1) if len(text_tD) else query_bD.new_full((len(query_bD),), torch.inf)


def _grouped(image_group_bG: Tensor, text_group_bk2: Tensor) -> Tensor:
    """(b, k) whether a text says what the sample's captions say, or belongs to a copy of its picture."""
    says = (image_group_bG[:, None, :-1] == text_group_bk2[..., :1]) & (text_group_bk2[..., :1] != NO_GROUP)
    copies = (image_group_bG[:, -1, None] == text_group_bk2[..., 1]) & (text_group_bk2[..., 1] != NO_GROUP)
    return says.any(-1) | copies


def make_miner(config: Config, model: DualEncoder, shards: ShardSet) -> Miner | None:
    """The miner that the settings ask for, on the model's device.

    Raises:
        ClipkitError: samples that come from a pipe and cannot be read again.
    """
    if config.data.negatives != "mined":
        return None
    if isinstance(shards, PipeSet):
        raise ClipkitError(f"{shards.name}: what has gone through a pipe cannot be looked up; make shards of it")
    return Miner(len(shards), model.embed_dim, config.data.mining_margin).to(model.device)
