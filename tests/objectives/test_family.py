"""The objectives in tiles against their dense forms: every rule, ragged tiles, float64 and float32."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from objectives_family import LOSSES, TILINGS, apart, gradients
from objectives_loops import KINDS, ruled
from objectives_tables import FEATURES, IDS, table

from clipkit.objectives import Comparison, Tiling, margin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_tiles_are_the_table_under_every_rule(loss: str, kind: str) -> None:
    tiled, whole = LOSSES[loss]
    for seed in range(2):
        c = ruled(kind, seed)
        true = gradients(whole, c)
        for tiling in TILINGS:
            assert apart(gradients(partial(tiled, tiling=tiling), c), true) < 1e-12, tiling


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("loss", list(LOSSES)[1:])
def test_tiles_are_the_table_whatever_the_features(loss: str, ids: str) -> None:
    tiled, whole = LOSSES[loss]
    for features in FEATURES:
        for scale in (1.0, 100.0) if not loss.startswith(("margin", "triplet", "negative")) else (1.0,):
            c = table(features, ids, 13, scale)
            if features == "duplicates" and loss in ("margin", "triplet hardest", "triplet semihard"):
                continue  # at a distance of 0, and between equal ones, the last bits decide
            true = gradients(whole, c)
            got = gradients(partial(tiled, tiling=Tiling(5, 7, 0)), c)
            size = max(float(t.norm()) for t in true.values())
            assert apart(got, true) < 1e-12 * max(size, 1), (features, scale)


@pytest.mark.parametrize("loss", list(LOSSES)[1:])
def test_float32_is_as_good_as_its_scores(loss: str) -> None:
    tiled, whole = LOSSES[loss]
    for ids in ("pairs", "labels"):
        for scale in (1.0, 14.0, 100.0):
            c = table("random", ids, 40, scale, dtype=torch.float32)
            double = replace(c, queries=c.queries.double(), keys=c.keys.double(), log_scale=c.log_scale.double())
            true, got = gradients(whole, double), gradients(partial(tiled, tiling=Tiling(7, 9, 0)), c)
            assert all(x.dtype == torch.float32 for x in got.values())
            fed = gradients(whole, c)
            for n, t in true.items():
                noise = float((fed[n].double() - t).norm())
                assert float((got[n].double() - t).norm()) <= max(5e-6 * float(t.norm()), 2 * noise), (n, ids, scale)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_from_above_and_a_second_pass(loss: str) -> None:
    tiled, _ = LOSSES[loss]
    c = ruled("captions groups shift queue bias", 1)
    one = gradients(partial(tiled, tiling=TILINGS[0]), c)
    other = gradients(lambda c: -2.5 * tiled(c, tiling=TILINGS[0]), c)
    assert all(torch.allclose(-2.5 * one[n], other[n], rtol=1e-12, atol=1e-15) for n in one)
    queries = c.queries.clone().requires_grad_()
    value = tiled(replace(c, queries=queries), tiling=TILINGS[0])
    first = torch.autograd.grad(value, queries, retain_graph=True)[0].clone()
    assert torch.equal(first, torch.autograd.grad(value, queries)[0])
    keys = c.keys.clone().requires_grad_()
    tiled(replace(c, keys=keys), tiling=TILINGS[0]).backward()  # the queries' tower is locked
    assert torch.allclose(keys.grad, one["keys"], rtol=1e-12, atol=1e-15)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(tiled(c, tiling=TILINGS[0]), value.detach())


@pytest.mark.parametrize("loss", LOSSES)
def test_scores_are_float32_under_autocast(loss: str) -> None:
    tiled, _ = LOSSES[loss]
    c = table("random", "pairs", 20, 50.0, dtype=torch.float32)
    plain = gradients(partial(tiled, tiling=TILINGS[0]), c)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for tiling in (TILINGS[0], None):
            got = gradients(partial(tiled, tiling=tiling), c)
            for n, x in plain.items():
                torch.testing.assert_close(got[n], x, rtol=1e-4, atol=1e-5 * float(x.abs().max() + 1))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_large_table_is_walked(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiled, whole = LOSSES[loss]
    c = table("random", "labels", 300, 14.0, dtype=torch.float64)
    true = gradients(whole, c)

    def refuse(*_: object) -> None:
        raise AssertionError("the table was made")

    monkeypatch.setattr(Comparison, "products", refuse)
    assert apart(gradients(tiled, c), true) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_empty_tables(loss: str) -> None:
    tiled, _ = LOSSES[loss]
    for q, k in ((0, 0), (0, 5), (5, 0)):
        for tiling in (*TILINGS, None):
            if loss == "sigmoid" and not q:
                continue
            queries, keys = torch.ones(q, 3, dtype=torch.float64), torch.ones(k, 3, dtype=torch.float64)
            c = Comparison(queries, keys, torch.arange(q), torch.arange(k), torch.zeros(1, dtype=torch.float64))
            got = gradients(partial(tiled, tiling=tiling), c)
            assert all(not x.any() for x in got.values()) or (loss == "margin" and q and k)


def test_margins_gradient_at_distance_0_is_finite() -> None:
    """A negative that lies on its query: the square root has no derivative there."""
    x = torch.eye(3, dtype=torch.float64)[:2]
    c = Comparison(x, x.clone(), torch.arange(2), torch.arange(2) + 5, torch.zeros(1, dtype=torch.float64))
    for tiling in (None, TILINGS[0]):
        got = gradients(partial(margin, margin=0.5, tiling=tiling), c)
        assert float(got["value"]) == pytest.approx(0.125) and not got["queries"].any()
        near = replace(c, keys=torch.nn.functional.normalize(c.keys + 1e-3, dim=1))
        got = gradients(partial(margin, margin=0.5, tiling=tiling), near)
        assert math.isfinite(float(got["queries"].norm())) and got["queries"].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_order_does_not_matter(loss: str) -> None:
    tiled, _ = LOSSES[loss]
    c = ruled("captions groups shift queue bias", 2)
    assert c.query_groups is not None and c.key_groups is not None and c.key_shift is not None and c.queue is not None
    rows, columns = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([6, 2, 0, 1, 5, 3, 4])
    moved = replace(c, queries=c.queries[rows], query_ids=c.query_ids[rows], query_groups=c.query_groups[rows])
    moved = replace(moved, keys=c.keys[columns], key_ids=c.key_ids[columns], key_groups=c.key_groups[columns],
                    key_shift=c.key_shift[columns], queue=c.queue.flip(0))  # fmt: skip
    for tiling in (None, TILINGS[0]):
        torch.testing.assert_close(tiled(moved, tiling=tiling), tiled(c, tiling=tiling), rtol=1e-12, atol=1e-13)
