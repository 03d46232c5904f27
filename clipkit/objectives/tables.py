"""Which table a method makes of a step's embeddings: what are queries, what are keys, and which cells count.

Each function takes the encoder's ``Embeddings`` and the batch that they are of, and returns the comparisons whose
losses are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from clipkit.encoders import Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives.comparison import Comparison, Exchange, compare
from clipkit.pairs import PairBatch

Compare = Callable[[Embeddings, PairBatch, Exchange], Sequence[Comparison]]
"""(embeddings, this rank's batch, how keys reach the other ranks) -> the tables of the step."""


def pairs_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """CLIP: pictures with texts; equal ids are positives. What the false-negative guard has grouped does not count."""
    table = compare(e, batch.image_ids, batch.text_ids, exchange)
    return [replace(table, query_groups=batch.image_groups, key_groups=batch.text_groups, key_shift=batch.text_shift)]


def pairs_both_ways_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """Pictures with texts, and texts with pictures: for a loss that looks at rows only (VSE++, Faghri et al. 2018)."""
    (table,) = pairs_table(e, batch, exchange)
    turned = replace(
        table,
        queries=table.keys,
        keys=table.queries,
        query_ids=table.key_ids,
        key_ids=table.query_ids,
        query_groups=table.key_groups,
        key_groups=table.query_groups,
        key_shift=None,
    )
    return [table, turned]


def views_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """SimCLR's NT-Xent: all views with all views; the other view of a picture is its positive, a view itself does not
    count."""
    return [_with_themselves(e, batch.image_ids, exchange)]


def labels_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """Supervised contrast: as ``views_table``, and all views of pictures with one label are positives.

    Raises:
        ClipkitError: the batch has no labels.
    """
    if batch.labels is None:
        raise ClipkitError("labels are compared, but the batch has none: the data need a `label` for their samples")
    return [_with_themselves(e, batch.labels, exchange)]


def momentum_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """MoCo: each query with its picture's key, and with the queue. Keys of other pictures in the batch do not count.

    With both views as queries (``symmetric``), both see the same queue: keys join it when the step is over.
    """
    queries, keys, ids = _across_views(e, batch.image_ids)
    group = torch.zeros_like(ids)[:, None]
    return [
        Comparison(
            queries,
            keys,
            ids,
            ids,
            _view_scale(e),
            exchange=exchange,
            query_groups=group,
            key_groups=group,
            queue=e.queue,
        )
    ]


def targets_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """BYOL: each prediction with the momentum encoder's projection of the other view."""
    queries, keys, ids = _across_views(e, batch.image_ids)
    return [Comparison(queries, keys, ids, ids, _view_scale(e), exchange=exchange)]


def sentences_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """SimCSE: the first text of each sample with the second of all; hard negatives are keys as well. What the
    false-negative guard has grouped does not count.

    Raises:
        ClipkitError: the batch has no texts, or not two of each sample.
    """
    if e.texts is None:
        raise ClipkitError("sentences are compared, but the batch has no texts")
    is_negative = ~batch.own_texts()
    own, ids = e.texts[~is_negative], batch.text_ids[~is_negative]
    if len(own) % 2 or not torch.equal(ids[0::2], ids[1::2]):
        raise ClipkitError(f"{len(own)} texts of {len(batch.image_ids)} samples: sentences are compared two by two")
    keys = torch.cat([own[1::2], e.texts[is_negative]])
    key_ids = torch.cat([ids[1::2], batch.text_ids[is_negative]])
    table = Comparison(own[0::2], keys, ids[0::2], key_ids, e.log_scale, e.bias, exchange)
    if batch.text_groups is None:
        return [table]
    groups = torch.cat([batch.text_groups[~is_negative][1::2], batch.text_groups[is_negative]])
    return [replace(table, query_groups=batch.image_groups, key_groups=groups)]


def pairs_and_views_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """SLIP: CLIP's table and SimCLR's."""
    return [*pairs_table(e, batch, exchange), *views_table(e, batch, exchange)]


def pairs_both_ways_and_views_table(e: Embeddings, batch: PairBatch, exchange: Exchange = "gather") -> list[Comparison]:
    """SLIP's for a loss that looks at rows only."""
    return [*pairs_both_ways_table(e, batch, exchange), *views_table(e, batch, exchange)]


def _with_themselves(e: Embeddings, ids: Tensor, exchange: Exchange) -> Comparison:
    rows = _views(e).flatten(0, 1)
    ids = ids.repeat(len(_views(e)))
    return Comparison(rows, rows, ids, ids, _view_scale(e), exchange=exchange, itself=True)


def _across_views(e: Embeddings, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, P) queries, (n, P) keys of the same picture's other view, and (n,) ids that tell pictures and views apart."""
    views = _views(e)
    if e.targets is None:
        raise ClipkitError("views are compared with a momentum encoder's: pass --momentum 0.99")
    targets = e.targets.flip(0) if len(views) > 1 else e.targets
    place = torch.arange(len(views), device=ids.device)[:, None]
    return views.flatten(0, 1), targets.flatten(0, 1), (ids * len(views) + place).flatten()


def _views(e: Embeddings) -> Tensor:
    if e.views is None:
        raise ClipkitError("views are compared, but the batch has one view of each picture")
    return e.views


def _view_scale(e: Embeddings) -> Tensor:
    return e.log_scale if e.view_scale is None else e.view_scale
