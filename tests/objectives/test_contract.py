"""The contract on one process: loss and every gradient, in float64 and float32, against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objectives_reference import LOSSES, answer, breaches, reference
from objectives_tables import FEATURES, IDS, TILINGS, table

from clipkit.objectives import Tiling

SCALES = (1.0, 14.0, 100.0)
TILED = [t for t in TILINGS.values() if t is not None]
DTYPES = [torch.float64, torch.float32]


@pytest.mark.parametrize("tilings", [TILED[:1], pytest.param(TILED[1:], marks=pytest.mark.slow)], ids=["one", "others"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("features", FEATURES)
def test_value_and_gradients_are_the_references(
    features: str, ids: str, loss: str, dtype: torch.dtype, tilings: list[Tiling]
) -> None:
    found = {}
    for scale in SCALES:
        for n in (1, 2, 13):
            c = table(features, ids, n, scale, -3.0 if loss == "sigmoid" else None, dtype)
            tiled = [answer(LOSSES[loss], c, tiling) for tiling in tilings]
            found[scale, n] = breaches(LOSSES[loss], c, *tiled)
            found[scale, n] += breaches(LOSSES[loss], c, answer(LOSSES[loss], c), dense=True)
    assert not {case: b for case, b in found.items() if b}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("features", "ids", "scale"),
    [("random", "pairs", 14.0), ("random", "labels", 100.0), ("saturated", "captions", 14.0),
     ("saturated", "pairs", 100.0), ("duplicates", "pairs", 14.0), ("far from all keys", "lonely", 100.0)],
)  # fmt: skip
def test_three_hundred_rows(features: str, ids: str, scale: float, loss: str, dtype: torch.dtype) -> None:
    """Tiles of a size at which matrix products are blocked, none of which divides the table."""
    c = table(features, ids, 300, scale, -10.0 if loss == "sigmoid" else None, dtype)
    tilings = [Tiling(rows=70, columns=130, keep_bytes=k) for k in (0, 150_000, 1 << 30)]
    assert not breaches(LOSSES[loss], c, *(answer(LOSSES[loss], c, tiling) for tiling in tilings))
    assert not breaches(LOSSES[loss], c, answer(LOSSES[loss], c), dense=True)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("lengths", [(0.05, 0.3), (0.5, 3.0), (3.0, 2.0)])
def test_features_of_any_length(lengths: tuple[float, float], ids: str, loss: str) -> None:
    """Inner products need not be cosines: from almost no contrast to scores of a few hundred."""
    c = table("random", ids, 13, 14.0, -3.0)
    generator = torch.Generator().manual_seed(3)
    queries, keys = (
        x * length * (0.5 + torch.rand(len(x), 1, dtype=torch.float64, generator=generator))
        for x, length in zip((c.queries, c.keys), lengths, strict=True)
    )
    for dtype in DTYPES:
        own = replace(c, queries=queries.to(dtype), keys=keys.to(dtype), log_scale=c.log_scale.to(dtype))
        own = replace(own, bias=torch.full((1,), -3.0, dtype=dtype))
        assert not breaches(LOSSES[loss], own, *(answer(LOSSES[loss], own, tiling) for tiling in TILED))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("features", ["random", "saturated"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tiling", TILINGS)
def test_scores_are_float32_under_autocast(features: str, loss: str, given: torch.dtype, tiling: str) -> None:
    """As exact as without, also where the backward pass is called under it: what bfloat16 features are is the
    encoder's business, what they score is the loss'."""
    c = table(features, "captions", 13, 100.0, -3.0, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = answer(LOSSES[loss], c, TILINGS[tiling])
        value = LOSSES[loss](c, TILINGS[tiling])
    assert value.dtype == torch.float32
    if given == torch.bfloat16:  # a gradient is of its tensor's dtype
        true = reference(LOSSES[loss], c)[0]
        for name in ("queries", "keys"):
            apart = abs(getattr(got, name) - getattr(true, name))
            assert (apart <= 2.0**-8 * abs(getattr(true, name)) + 1e-4 * abs(getattr(true, name)).max()).all(), name
        got = replace(got, queries=true.queries, keys=true.keys)
    assert not breaches(LOSSES[loss], c, got)
