"""What the tiled losses keep whatever the numbers are: identities, symmetries, the fall-back, precision switches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from objectives_reference import LOSSES, Answer, answer, breaches, norm, reference
from objectives_tables import IDS, TILINGS, table
from objectives_tables import ids as ids_of
from torch import Tensor
from torch.nn import functional as F

from clipkit.errors import ClipkitError
from clipkit.objectives import Comparison, Tiling, dense, tiled_infonce, tiled_sigmoid, walk

RAGGED = TILINGS["recomputed"]


def near(got: Answer, expected: Answer, tolerance: float = 1e-12) -> bool:
    """Each tensor in norm; the tolerance is for numbers around 1."""
    pairs = [(getattr(got, n), getattr(expected, n)) for n in ("value", "queries", "keys", "log_scale", "bias")]
    return all(norm(g - e) <= tolerance * max(norm(e), 1) for g, e in pairs)


@pytest.mark.parametrize(("ids", "n"), [*((ids, n) for n in (1, 2) for ids in IDS), ("pairs", 13), ("captions", 13)])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck_on_ragged_tiles(loss: str, ids: str, n: int) -> None:
    c = table("random", ids, n, 3.0, -0.7)
    assert len(c.queries) and len(c.keys), "an empty table has no gradient to check"

    def value(queries: Tensor, keys: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        # three features: finite differences take two evaluations for every number
        own = replace(c, queries=F.normalize(queries, dim=1), keys=F.normalize(keys, dim=1))
        return LOSSES[loss](replace(own, log_scale=log_scale, bias=bias), RAGGED)

    inputs = [x.clone().requires_grad_() for x in (c.queries[:, :3], c.keys[:, :3], c.log_scale, c.bias)]  # type: ignore[index]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("features", ["random", "duplicates", "anti-aligned"])
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_temperatures_gradient_is_that_of_the_features(loss: str, ids: str, features: str) -> None:
    """Euler: s dL/ds = sum <I, dI> = sum <T, dT>; the bias has no part in it."""
    c = table(features, ids, 13, 14.0, -2.0)
    got = answer(LOSSES[loss], c, RAGGED)
    for side, grad in ((c.queries, got.queries), (c.keys, got.keys)):
        assert float((side.numpy() * grad).sum()) == pytest.approx(float(got.log_scale[0]), rel=1e-11, abs=1e-12)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("features", ["random", "far from all keys"])
def test_sides_order_and_tiles_do_not_matter(features: str, loss: str, ids: str) -> None:
    function, c = LOSSES[loss], table(features, ids, 13, 14.0, -2.0)
    straight = answer(function, c, RAGGED)
    for rows, columns, kept in ((1, 1, 0), (3, 100, 400), (100, 2, 0), (13, 13, 1 << 20)):
        assert near(answer(function, c, Tiling(rows, columns, kept)), straight)

    generator = torch.Generator().manual_seed(9)
    rows_Q, columns_K = (torch.randperm(len(x), generator=generator) for x in (c.queries, c.keys))
    moved = replace(c, queries=c.queries[rows_Q], keys=c.keys[columns_K])
    moved = replace(moved, query_ids=c.query_ids[rows_Q], key_ids=c.key_ids[columns_K])
    back = answer(function, moved, RAGGED)
    order = (rows_Q.argsort().numpy(), columns_K.argsort().numpy())
    assert near(replace(back, queries=back.queries[order[0]], keys=back.keys[order[1]]), straight)

    turned = Comparison(c.keys, c.queries, c.key_ids, c.query_ids, c.log_scale, c.bias)
    back = answer(function, turned, RAGGED)
    factor = 1.0 if loss == "infonce" else len(c.keys) / len(c.queries)  # the sigmoid's divisor is the queries' number
    back = Answer(*(factor * x for x in (back.value, back.keys, back.queries, back.log_scale, back.bias)))
    assert near(back, straight)


@pytest.mark.parametrize("tiling", ["recomputed", "kept"])
@pytest.mark.parametrize("features", ["random", "far from all keys"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_from_above_is_passed_on_as_often_as_it_comes(loss: str, features: str, tiling: str) -> None:
    function, c = LOSSES[loss], table(features, "captions", 13, 100.0, -2.0)
    one, other = answer(function, c, TILINGS[tiling]), answer(function, c, TILINGS[tiling], upstream=-2.5)
    assert near(replace(other, value=one.value), Answer(one.value, *(-2.5 * g for g in _gradients(one))))

    leaves = [x.clone().requires_grad_() for x in (c.queries, c.keys, c.log_scale)]
    value = function(replace(c, queries=leaves[0], keys=leaves[1], log_scale=leaves[2]), TILINGS[tiling])
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(value, leaves)
    assert all(torch.equal(a, b) and torch.equal(a, k) for a, b, k in zip(first, second, kept, strict=True))


def _gradients(x: Answer) -> tuple[object, ...]:
    return x.queries, x.keys, x.log_scale, x.bias


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("wanted", range(4))
def test_only_what_is_asked_for_gets_a_gradient(loss: str, wanted: int) -> None:
    """A locked tower, a fixed temperature: the others' gradients stay what they are."""
    c = table("random", "captions", 13, 14.0, -2.0)
    tensors = [c.queries.clone(), c.keys.clone(), c.log_scale.clone(), torch.full((1,), -2.0, dtype=torch.float64)]
    tensors[wanted].requires_grad_()
    LOSSES[loss](Comparison(tensors[0], tensors[1], c.query_ids, c.key_ids, *tensors[2:]), RAGGED).backward()
    assert [x.grad is not None for x in tensors] == [i == wanted for i in range(4)]
    got, expected = tensors[wanted].grad, _gradients(answer(LOSSES[loss], c, RAGGED))[wanted]
    assert got is not None and norm(got.numpy() - expected) <= 1e-13  # type: ignore[operator]


@pytest.mark.parametrize("loss", LOSSES)
def test_without_gradients(loss: str) -> None:
    c = table("random", "captions", 13, 14.0, -2.0)
    leaf = replace(c, queries=c.queries.clone().requires_grad_())
    with torch.no_grad():
        value = LOSSES[loss](leaf, RAGGED)
    assert not value.requires_grad and torch.equal(value, LOSSES[loss](leaf, RAGGED).detach())
    assert torch.equal(value, LOSSES[loss](c, RAGGED))


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_that_fade_are_taken_from_each_rows_own_maximum(
    monkeypatch: pytest.MonkeyPatch, ids: str, dtype: torch.dtype
) -> None:
    """Every score is near -scale: with one constant for all, sums would be exp(-1.8 scale) of the largest float."""
    c = table("far from all keys", ids, 13, 100.0 if dtype == torch.float32 else 900.0, dtype=dtype)
    calls = []
    original = tiled_infonce._maxima
    monkeypatch.setattr(tiled_infonce, "_maxima", lambda *arguments: calls.append(1) or original(*arguments))
    for name in ("recomputed", "partly kept", "kept"):
        assert not breaches(LOSSES["infonce"], c, answer(LOSSES["infonce"], c, TILINGS[name]))
    assert len(calls) == 3
    answer(LOSSES["infonce"], replace(c, log_scale=torch.ones(1, dtype=dtype)), RAGGED)
    assert len(calls) == 3, "a second pass over the table where none is needed"


def test_one_faded_row_or_column_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    c = table("one far", "pairs", 13, 100.0, dtype=torch.float32)
    turned = Comparison(c.keys, c.queries, c.key_ids, c.query_ids, c.log_scale)
    calls = []
    original = tiled_infonce._maxima
    monkeypatch.setattr(tiled_infonce, "_maxima", lambda *arguments: calls.append(1) or original(*arguments))
    for i, own in enumerate((c, turned)):
        assert not breaches(LOSSES["infonce"], own, answer(LOSSES["infonce"], own, RAGGED))
        assert len(calls) == i + 1


@pytest.mark.parametrize("keep_bytes", [0, 279, 280, 1000, 1 << 20])
def test_tiles_are_kept_while_the_budget_lasts(monkeypatch: pytest.MonkeyPatch, keep_bytes: int) -> None:
    """And what is kept is not computed again. A tile of 7 x 5 float64 has 280 bytes, the table 13 x 13 of them 1352."""
    c = table("random", "pairs", 13, 14.0)
    queries = c.queries.clone().requires_grad_()
    value = LOSSES["infonce"](replace(c, queries=queries), Tiling(7, 5, keep_bytes))
    kept = sum(x.untyped_storage().nbytes() for x in value.grad_fn.kept.values())  # type: ignore[union-attr]
    assert kept <= keep_bytes and (kept > keep_bytes - 280 or kept == 1352)
    calls = []
    original = walk.Tile.products
    monkeypatch.setattr(walk.Tile, "products", lambda *arguments: calls.append(1) or original(*arguments))
    value.backward()
    assert len(calls) == 6 - len(value.grad_fn.kept)  # type: ignore[union-attr]


@pytest.mark.parametrize("tiling", [Tiling(70, 130, 0), Tiling(512, 512, 1 << 30), None])
@pytest.mark.parametrize("ids", ["pairs", "captions"])
def test_scores_that_are_almost_alike_leave_the_temperature_its_digits(ids: str, tiling: Tiling | None) -> None:
    """As before training: all scores are 1 and a little, and what the temperature gets is a thousandth of its terms.

    The features lie on a grid on which float32 has their products to the last bit, so nothing is the scores' fault.
    """
    query_ids, key_ids = ids_of(ids, 300)
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(1, 64, generator=generator)
    queries, keys = (
        (F.normalize(centre + 0.02 * torch.randn(len(i), 64, generator=generator), dim=1) * 1024).round() / 1024
        for i in (query_ids, key_ids)
    )
    c = Comparison(queries, keys, query_ids, key_ids, torch.zeros(1))
    true, got = reference(LOSSES["infonce"], c)[0], answer(LOSSES["infonce"], c, tiling)
    assert norm(got.log_scale - true.log_scale) < 5e-6 * norm(true.log_scale)


@pytest.mark.parametrize("tiling", ["recomputed", "dense"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_float32_temperature_is_taken_as_it_is(loss: str, tiling: str) -> None:
    """An exp in float32 would be off by more than the last bit of a score."""
    for scale in (5.7, 37.0, 91.3):
        c = table("random", "captions", 13, scale, -2.0)
        c = replace(c, log_scale=c.log_scale.float())
        true, got = reference(LOSSES[loss], c)[0], answer(LOSSES[loss], c, TILINGS[tiling])
        assert near(replace(got, log_scale=true.log_scale, bias=true.bias), true, 1e-12)
        assert norm(got.log_scale - true.log_scale) < 1e-7 * norm(true.log_scale)


def test_a_small_tables_bias_gets_what_is_left_of_ones() -> None:
    """Cells that are wrong both ways: its gradient is 1 - 1 + 1e-5, of which float32 terms would leave no digits."""
    c = table("random", "pairs", 2, 100.0, -3.0, torch.float32)
    true, got = reference(LOSSES["sigmoid"], c)[0], answer(LOSSES["sigmoid"], c)
    assert 0 < norm(true.bias) < 1e-4
    assert norm(got.bias - true.bias) < 5e-6 * norm(true.bias)


def test_small_tables_are_made_and_large_ones_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("dense")

    for loss in LOSSES:
        monkeypatch.setattr(dense, loss, refuse)
        with pytest.raises(AssertionError, match="dense"):
            LOSSES[loss](table("random", "pairs", 30, 14.0, dtype=torch.float32))
        large = table("random", "pairs", 1024, 14.0, dtype=torch.float32)
        assert float(LOSSES[loss](large)) > 0
        monkeypatch.undo()
        torch.testing.assert_close(LOSSES[loss](large), getattr(dense, loss)(large), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("q", "k"), [(0, 0), (0, 5), (5, 0)])
def test_an_empty_table_has_a_finite_loss(loss: str, q: int, k: int) -> None:
    for dtype in (torch.float32, torch.float64):
        for tiling in TILINGS.values():
            queries, keys = torch.ones(q, 3, dtype=dtype), torch.ones(k, 3, dtype=dtype)
            c = Comparison(queries, keys, torch.arange(q), torch.arange(k), torch.zeros(1, dtype=dtype))
            if q or loss == "infonce":
                got = answer(LOSSES[loss], c, tiling)
                assert got.value == 0 and norm(got.queries) == norm(got.keys) == norm(got.log_scale) == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_every_product_of_both_passes_is_made_with_the_switches_off(monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    """What tf32 would do cannot be seen on a CPU, so this asks whether each product is inside ``exact_scores``."""
    inside, calls, exact = [0], [], walk.exact_scores

    @contextmanager
    def counted(device: torch.device) -> Iterator[None]:
        inside[0] += 1
        with exact(device):
            yield
        inside[0] -= 1

    def noting(original: Callable[..., object], name: str) -> Callable[..., object]:
        return lambda *arguments: calls.append((name, inside[0])) or original(*arguments)

    for module in (tiled_infonce, tiled_sigmoid):
        monkeypatch.setattr(module, "exact_scores", counted)
    for name in ("products", "add_gradients"):
        monkeypatch.setattr(walk.Tile, name, noting(getattr(walk.Tile, name), name))
    answer(LOSSES[loss], table("random", "pairs", 13, 14.0, -2.0), RAGGED)
    assert {name for name, _ in calls} == {"products", "add_gradients"}
    assert all(depth == 1 for _, depth in calls)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("precision", ["high", "highest"])
def test_tf32_is_off_for_scores_and_as_it_was_afterwards(precision: str, fails: bool) -> None:
    matmul = torch.backends.cuda.matmul
    # torch 2.9 has a new name, and refuses to read the old one where the two are set apart
    name, on = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        setting = getattr(matmul, name)
        assert (setting == on) == (precision == "high")
        with suppress(KeyError), walk.exact_scores(torch.device("cuda")):
            assert getattr(matmul, name) != on
            if fails:
                raise KeyError
        assert getattr(matmul, name) == setting
        assert torch.get_float32_matmul_precision() == precision
        with walk.exact_scores(torch.device("cpu")):
            assert getattr(matmul, name) == setting, "no business of a CPU's"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_gradient_of_the_gradient_is_refused(loss: str) -> None:
    c = table("random", "pairs", 5, 1.0, -1.0)
    queries = c.queries.clone().requires_grad_()
    value = LOSSES[loss](replace(c, queries=queries), RAGGED)
    with pytest.raises(ClipkitError, match="no second derivative"):
        torch.autograd.grad(value, queries, create_graph=True)
    dense_value = (dense.infonce if loss == "infonce" else dense.sigmoid)(replace(c, queries=queries))
    (grad,) = torch.autograd.grad(dense_value, queries, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), queries)
    assert second.abs().max() > 0


def test_the_bias_of_a_small_table_whose_wrong_cells_cancel() -> None:
    """Every cell is wrong by almost 1, one way or the other: of (1 - a) - (1 - b) float32 would leave two digits."""
    features = torch.eye(2)
    c = Comparison(features, features.flip(0), torch.arange(2), torch.arange(2), torch.tensor([2.4]), torch.zeros(1))
    exact = answer(dense_sigmoid, replace(c, queries=c.queries.double(), keys=c.keys.double()), None)
    assert abs(answer(LOSSES["sigmoid"], c, RAGGED).bias / exact.bias - 1) < 5e-6


def dense_sigmoid(c: Comparison, tiling: Tiling | None) -> torch.Tensor:
    return dense.sigmoid(c)


def test_positives_are_remembered_only_where_they_are_few() -> None:
    """With one label for all they are as many as the cells, and would be the table that is never to be held."""
    for kind, few in (("pairs", True), ("all the same", False)):
        c = table("random", kind, 64, 1.0)
        one = walk.Walk(c, Tiling(32, 32, 0))
        blocks = one.keys(c.keys)
        first = [tile.positives for tile in one.tiles(c.queries, blocks)]
        kept = sum(len(found[0]) for found in one._positives.values() if found is not None)
        assert kept == 64 if few else kept <= 64  # of some 4,000 cells, those of a ragged last column
        again = [tile.positives for tile in one.tiles(c.queries, blocks)]
        for a, b in zip(first, again, strict=True):
            assert (a is None) == (b is None) and (
                a is None or all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
            )
