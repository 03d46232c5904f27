"""The rules of a comparison and every objective under them, against loops over the cells in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import objectives_loops as loops
import pytest
import torch
from objectives_loops import KINDS, ruled
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.objectives import (
    Comparison,
    GlobalContrastive,
    hard_infonce,
    infonce,
    margin,
    negative_cosine,
    sigmoid,
    triplet,
)

Both = tuple[Callable[[Comparison], Tensor], Callable[[Comparison], float]]
LOSSES: dict[str, Both] = {
    "infonce": (infonce, loops.infonce),
    "infonce rows": (partial(infonce, directions="rows"), partial(loops.infonce, directions="rows")),
    "sigmoid": (sigmoid, loops.sigmoid),
    "negative cosine": (negative_cosine, loops.negative_cosine),
    "margin": (partial(margin, margin=1.3), partial(loops.margin, margin=1.3)),
    "triplet all": (partial(triplet, margin=0.4), partial(loops.triplet, margin=0.4, mining="all")),
    "triplet hardest": (
        partial(triplet, margin=0.4, mining="hardest"),
        partial(loops.triplet, margin=0.4, mining="hardest"),
    ),
    "triplet semihard": (
        partial(triplet, margin=0.4, mining="semihard"),
        partial(loops.triplet, margin=0.4, mining="semihard"),
    ),
    "hard": (partial(hard_infonce, beta=0.8), partial(loops.hard_infonce, beta=0.8)),
    "hard debiased": (
        partial(hard_infonce, beta=0.5, tau_plus=0.1),
        partial(loops.hard_infonce, beta=0.5, tau_plus=0.1),
    ),
    "hard floored": (
        partial(hard_infonce, beta=0.5, tau_plus=0.6),
        partial(loops.hard_infonce, beta=0.5, tau_plus=0.6),
    ),
    "hard rows": (
        partial(hard_infonce, beta=0.5, tau_plus=0.1, directions="rows"),
        partial(loops.hard_infonce, beta=0.5, tau_plus=0.1, directions="rows"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_objective_under_every_rule(loss: str, kind: str) -> None:
    function, loop = LOSSES[loss]
    for seed in range(3):
        c = ruled(kind, seed)
        assert float(function(c)) == pytest.approx(loop(c), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", ["captions groups shift queue bias", "itself groups shift queue", "labels"])
@pytest.mark.parametrize("loss", LOSSES)
def test_and_every_gradient(loss: str, kind: str) -> None:
    function, loop = LOSSES[loss]
    c = ruled(kind, 3)
    leaves = {n: getattr(c, n).clone().requires_grad_() for n in ("queries", "keys", "log_scale")}
    if c.bias is not None:
        leaves["bias"] = c.bias.clone().requires_grad_()
    function(replace(c, **leaves)).backward()
    expected = loops.gradient(loop, c)
    for name, leaf in leaves.items():
        assert leaf.grad is not None, "DDP waits for every parameter"
        torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_what_counts(kind: str) -> None:
    c = ruled(kind)
    counts, positives, negatives = c.counts(), c.positives(), c.negatives()
    n = len(c.keys) + (0 if c.queue is None else len(c.queue))
    assert counts.shape == positives.shape == negatives.shape == c.scores().shape == (len(c.queries), n)
    for i, row in enumerate(loops.rows(c)):
        assert counts[i].nonzero()[:, 0].tolist() == [x.column for x in row]
        assert positives[i].nonzero()[:, 0].tolist() == [x.column for x in row if x.positive]
        assert negatives[i].nonzero()[:, 0].tolist() == [x.column for x in row if not x.positive]
    kept = sum(len(row) for row in loops.rows(replace(c, query_groups=None, key_groups=None)))
    assert c.cleared() == kept - int(counts.sum())


def test_no_group_equals_nothing() -> None:
    c = ruled("pairs")
    none = torch.full((6, 2), -1)
    assert replace(c, query_groups=none, key_groups=none).counts().all()
    one = replace(c, query_groups=torch.zeros(6, 1, dtype=torch.int64), key_groups=torch.zeros(6, 1, dtype=torch.int64))
    assert torch.equal(one.counts(), torch.eye(6, dtype=torch.bool)) and one.cleared() == 30
    assert replace(c, query_groups=torch.zeros(6, 0).long(), key_groups=torch.zeros(6, 0).long()).counts().all()


def test_what_does_not_fit_is_refused() -> None:
    c = ruled("captions")  # 5 queries, 7 keys
    wrong: list[dict[str, object]] = [
        {"itself": True},
        {"query_groups": torch.zeros(5, 2).long()},
        {"key_groups": torch.zeros(7, 2).long()},
        {"query_groups": torch.zeros(5, 2).long(), "key_groups": torch.zeros(7, 1).long()},
        {"query_groups": torch.zeros(7, 2).long(), "key_groups": torch.zeros(7, 2).long()},
        {"query_groups": torch.zeros(5).long(), "key_groups": torch.zeros(7).long()},
        {"key_shift": torch.zeros(5)},
        {"key_shift": torch.zeros(7, 1)},
        {"queue": torch.zeros(3, 5)},
        {"queue": torch.zeros(4)},
    ]
    for fields in wrong:
        with pytest.raises(ClipkitError) as caught:
            replace(c, **fields)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    calls: list[Callable[[], object]] = [
        lambda: margin(c, 0.0),
        lambda: margin(c, math.nan),
        lambda: triplet(c, -0.1),
        lambda: triplet(c, mining="soft"),  # type: ignore[arg-type]
        lambda: infonce(c, directions="columns"),  # type: ignore[arg-type]
        lambda: hard_infonce(c, -1.0),
        lambda: hard_infonce(c, tau_plus=1.0),
        lambda: GlobalContrastive(0),
        lambda: GlobalContrastive(3, gamma=0.0),
        lambda: GlobalContrastive(3, gamma=1.1),
        lambda: GlobalContrastive(3, eps=0.0),
        lambda: GlobalContrastive(4)(c),
        lambda: GlobalContrastive(9)(replace(c, key_ids=c.key_ids - 1)),
    ]
    for call in calls:
        with pytest.raises(ClipkitError) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_to_compare_is_0(loss: str) -> None:
    function, c = LOSSES[loss][0], ruled("captions")
    lonely = replace(c, key_ids=c.key_ids + 100)
    empty = replace(c, queries=c.queries[:0], query_ids=c.query_ids[:0])
    none = replace(empty, keys=c.keys[:0], key_ids=c.key_ids[:0])
    for own in (lonely, empty, none):
        queries, keys = own.queries.clone().requires_grad_(), own.keys.clone().requires_grad_()
        if loss == "sigmoid" or (loss == "margin" and own is lonely):
            continue
        value = function(replace(own, queries=queries, keys=keys))
        value.backward()
        assert value.item() == 0
        assert all(x.grad is None or not x.grad.any() for x in (queries, keys))
